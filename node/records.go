package node

import (
	"context"

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

// submit has a member write a record, which is tried by one after the other: all
// at once would race each other.
func (n *Node) submit(ctx context.Context, s records.Submission) (a records.Answer, err error) {
	body, err := n.codec.Marshal(s)
	if err != nil {
		return a, err
	}
	b, err := n.askInTurn(ctx, commitMethod, body)
	if err != nil {
		return a, err
	}
	return a, n.codec.Unmarshal(b, &a)
}
