package node

import (
	"context"

	"github.com/grangemesh/grange/node/leases"
	"github.com/grangemesh/grange/origin/catalog"
)

func (n *Node) openLeases(context.Context) error {
	n.leases = leases.New(leases.Config{
		Self: n.identity.Public(), Farm: n.Farm(), Wanted: n.reads, Commit: n.Names.Commit,
		Origin: func() bool { state := n.origin.now().state; return state == originOK || state == originNone }, // else a member writes them
		List:   n.Names.All,
		Codec:  n.codec, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return nil
}

// reads is what this node reads that no name may stand for any more.
func (n *Node) reads() (out []leases.Want) {
	for _, e := range n.Volumes.Index().Sorted() {
		w := leases.Want{What: "volume " + e.Name, Folded: e.Folded, Size: e.Size}
		if e.Reader { // the journal is on this disk
			w.Folded = catalog.Folded{Head: e.Head}
		}
		if (e.Reader || !e.Committed) && (w.Head != nil || len(w.Segments) > 0) {
			out = append(out, w)
		}
	}
	for dir, head := range n.Mounts.Shown {
		out = append(out, leases.Want{What: "mount " + dir, Folded: catalog.Folded{Head: &head}, Size: head.Root.Size})
	}
	for name, head := range n.Instances.Bases {
		out = append(out, leases.Want{What: "instance " + name, Folded: catalog.Folded{Head: &head}, Size: head.Root.Size})
	}
	return out
}
