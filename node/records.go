package node

import (
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/records"
)

// learn makes the root of a record readable.
func (n *Node) learn(k records.Known) {
	if k.Head == nil {
		return
	}
	if _, err := n.fetch.Learn(rootOf(k)); err != nil {
		n.cfg.Log.Warn("a root can't be learned", "name", k.Name, "err", err)
	}
}

func rootOf(k records.Known) fetch.Root {
	return fetch.Root{Head: *k.Head, Lineage: k.Lineage, Envelope: k.Sealed}
}

// introduced reads a record that a member sent because it is going to ask for the
// root in it.
func (n *Node) introduced(envelope []byte) (fetch.Root, error) {
	k, err := n.Names.Introduced(envelope)
	if err != nil {
		return fetch.Root{}, err
	}
	return rootOf(k), nil
}

// recheck drops what is believed no more, when keys were revoked.
func (n *Node) recheck() {
	n.origin.recheck()
	n.Names.Recheck()
}
