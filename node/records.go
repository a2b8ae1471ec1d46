package node

import (
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// learn makes the root of a record readable.
func (n *Node) learn(k records.Known) {
	if k.Head == nil {
		return
	}
	if _, err := n.fetch.Learn(images.RootOf(k)); err != nil {
		n.cfg.Log.Warn("a root can't be learned", "name", k.Name, "err", err)
	}
}

// introduced reads a record that a member sent because it is going to ask for the
// root in it.
func (n *Node) introduced(envelope []byte) (fetch.Root, error) {
	k, err := n.Names.Introduced(envelope)
	if err != nil {
		return fetch.Root{}, err
	}
	return images.RootOf(k), nil
}

// recall returns what is known of a record for the catalog, which is opened before the
// names are.
func (n *Node) recall(kind content.Kind, name string) (catalog.Record, bool) {
	if n.Names == nil {
		return catalog.Record{}, false
	}
	return n.Names.Recall(kind, name)
}
