package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// learn makes the root of a record readable.
func (n *Node) learn(k known) {
	if k.head == nil {
		return
	}
	if _, err := n.fetch.Learn(rootOf(n.codec, k)); err != nil {
		n.cfg.Log.Warn("a root can't be learned", "name", k.Name, "err", err)
	}
}

func rootOf(c *content.Codec, k known) fetch.Root {
	r := fetch.Root{Head: *k.head, Envelope: k.Sealed}
	if body, err := catalog.DecodeImage(c, k.Body); err == nil {
		r.Lineage = body.Lineage
	}
	return r
}

// introduced reads a record that a member sent because it is going to ask for the
// root in it.
func (n *Node) introduced(envelope []byte) (fetch.Root, error) {
	e, err := n.verifier.Open(envelope, n.cfg.Now(), n.cfg.Now())
	if err != nil {
		return fetch.Root{}, err
	}
	k, err := n.Names.describe(catalog.Record{Envelope: e, Sealed: envelope, SeenAt: e.SignedAt})
	if err != nil {
		return fetch.Root{}, err
	}
	if k.head == nil {
		return fetch.Root{}, fmt.Errorf("introduce %s %q: %w: it has no root", e.Kind, e.Name, content.ErrInvalid)
	}
	return rootOf(n.codec, k), nil
}

// commit writes a record, by this node's origin or through a member.
func (n *Node) commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	if c := n.origin.writer(); c != nil {
		r, err := c.Commit(ctx, ch)
		if err == nil {
			return r, n.Names.Confirmed(r)
		}
		n.origin.lost(err)
		return r, err
	}
	return n.commitThroughMember(ctx, ch)
}

func (n *Node) commitThroughMember(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	version, etag := uint64(1), ""
	base := ch.Base
	if k, held := n.Names.Held(ch.Kind, ch.Name); base == nil && held && k.Tombstone { // a deleted name is free
		base = &k.Record
	}
	if base != nil {
		version, etag = base.Version+1, base.ETag
	}
	e := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Version: version, SignedAt: n.cfg.Now(), Farm: ch.Farm, Tombstone: ch.Delete, Body: ch.Body, Commit: trust.NewCommit()}
	sealed, err := n.signer.Seal(e)
	if err != nil {
		return catalog.Record{}, err
	}
	body, err := n.codec.Marshal(commitRequest{sealed, etag})
	if err != nil {
		return catalog.Record{}, err
	}
	r, err := n.commitBy(ctx, ch, body)
	if errors.Is(err, content.ErrUnavailable) {
		_, mine := n.origin.writable()
		err = fmt.Errorf("%w; no member that was asked could write it either: %w", errors.Join(content.ErrUnavailable, mine), err)
	}
	if err != nil {
		return catalog.Record{}, fmt.Errorf("write %s %q: %w", ch.Kind, ch.Name, err)
	}
	if r.Commit != e.Commit {
		return catalog.Record{}, fmt.Errorf("write %s %q: %w: a member answered with another record", ch.Kind, ch.Name, content.ErrCorrupt)
	}
	return r, n.Names.Confirmed(r)
}

// commitBy has a member write a record, which is tried by one after the other: all
// at once would race each other.
func (n *Node) commitBy(ctx context.Context, ch catalog.Change, body []byte) (catalog.Record, error) {
	b, err := n.askInTurn(ctx, commitMethod, body)
	if err != nil {
		return catalog.Record{}, err
	}
	var h heard
	if err := n.codec.Unmarshal(b, &h); err != nil {
		return catalog.Record{}, err
	}
	return n.Names.heard(ch.Kind, ch.Name, h)
}
