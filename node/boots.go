package node

import (
	"context"
	"path/filepath"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

func (n *Node) openBoots(context.Context) error {
	n.Boots = boots.New(boots.Config{Dir: filepath.Join(n.cfg.Dir, "boots"), Image: n.bootList, Codec: n.codec, Now: n.cfg.Now, Log: n.cfg.Log})
	return nil
}

// bootList reports whether a root is a published image, and returns its list.
func (n *Node) bootList(root content.CID) (list *catalog.Boot, published bool) {
	for _, scope := range []content.Scope{content.Mesh(), content.Public(), content.Farm(n.Farm())} { // a volume's is its farm's, whatever its image's
		for k := range n.Names.ImagesOf(root, scope) {
			body, err := catalog.DecodeImage(n.codec, k.Body)
			published = published || err == nil
			if body.Boot != nil {
				return body.Boot, true
			}
		}
	}
	return nil, published
}

// opened is told of a volume whose disk is about to be read.
func (n *Node) opened(m *fetch.Image, e index.Entry, start bool) {
	n.Boots.Opened(m, boots.Disk{Lineage: e.Lineage, Hot: e.Hot, Again: start})
}
