package node

import (
	"context"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/upkeep"
	"github.com/grangemesh/grange/origin/content"
)

// Upkeep says how often a node that may looks after the origin; zero is never.
type Upkeep struct {
	// Collect is between two collections of garbage of the whole mesh, Verify between two checks of this node's.
	Collect, Verify time.Duration
}

func (n *Node) openUpkeep(context.Context) error {
	n.Upkeep = upkeep.New(upkeep.Config{
		URL: n.origin.url, File: filepath.Join(n.cfg.Dir, "upkeep.json"), Temp: filepath.Join(n.cfg.Dir, images.TempDir), CollectEvery: n.cfg.Upkeep.Collect, VerifyEvery: n.cfg.Upkeep.Verify,
		Readable: n.origin.readable, Writable: n.origin.writable, Target: n.origin.beside, Suspect: n.origin.suspect,
		Recall: func(space content.Kind, name, etag string) []byte {
			if r, ok := n.recall(space, name); ok && r.ETag == etag {
				return r.Sealed
			}
			return nil
		},
		Operations: n.Operations, Signer: n.signer, Verifier: n.verifier, Log: n.cfg.Log,
	})
	return nil
}
