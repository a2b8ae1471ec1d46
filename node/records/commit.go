package records

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// readBackTimeout bounds the question to other members whether a record that one wrote
// for this node is at the origin: they look there.
const readBackTimeout = 3 * time.Second

// Commit writes a record, at this node's origin or through a member. One that a member
// says it wrote is ErrUnavailable until another has seen it at the origin, or this
// node: it is known here, unconfirmed, and the same Commit again writes no other.
func (n *Names) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	ch.Base = n.base(ch)
	if c := n.cfg.Writer(); c != nil {
		asked := n.cfg.Now()
		r, err := c.Commit(ctx, ch)
		if err != nil {
			n.cfg.Lost(err)
			return r, err
		}
		return r, n.Told(r, asked)
	}
	r, err := n.commitThroughMember(ctx, ch)
	if err != nil {
		return catalog.Record{}, fmt.Errorf("write %s %q: %w", ch.Kind, ch.Name, err)
	}
	return r, nil
}

// base is the record that a change replaces: where members saw a later one than the
// origin shows, the origin's, as who writes there anew settles which it is.
func (n *Names) base(ch catalog.Change) *catalog.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entry(key(ch.Kind, ch.Name))
	if ch.Base != nil && e.heard != nil && e.said != nil && ch.Base.Commit == e.heard.Commit && e.heard.against == e.said.Commit {
		return &e.said.Record
	}
	return ch.Base
}

func (n *Names) commitThroughMember(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	s, mine, err := n.submission(ch)
	if err != nil {
		return catalog.Record{}, err
	}
	a, err := n.cfg.Submit(ctx, s)
	if err != nil {
		return catalog.Record{}, err
	}
	w, err := n.open(Question{Kind: ch.Kind, Name: ch.Name}, a)
	if err == nil && w.known.Commit != mine.Commit {
		err = fmt.Errorf("%w: a member answered with another record", content.ErrCorrupt)
	}
	if err != nil {
		return catalog.Record{}, err
	}
	id := key(ch.Kind, ch.Name)
	w.known.over = s.ETag
	n.changeForGood(id, func(e entry) entry { return e.handed(w.known, n.cfg.Now()) })
	if err := n.readBack(ctx, w); err != nil {
		return catalog.Record{}, err
	}
	w.known.Confirmed, w.known.agreed = true, n.cfg.Now()
	n.change(id, func(e entry) entry { return e.hears(w.known, n.cfg.Now()) })
	return w.known.Record, nil
}

// submission seals a change. One that was handed to a member before, and was not seen
// at the origin since, is sent again as it was: it may be there.
func (n *Names) submission(ch catalog.Change) (Submission, trust.Envelope, error) {
	base := ch.Base
	if k, held := n.Held(ch.Kind, ch.Name); held {
		mine := !k.Confirmed && k.read.IsZero() && k.Signer.Key == n.cfg.Signer.Key.Public()
		if mine && k.Tombstone == ch.Delete && bytes.Equal(k.Body, ch.Body) {
			return Submission{k.Sealed, k.over}, k.Envelope, nil
		}
		if base == nil && k.Tombstone { // a deleted name is free
			base = &k.Record
		}
	}
	version, etag := uint64(1), ""
	if base != nil {
		version, etag = base.Version+1, base.ETag
	}
	mine := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Version: version, SignedAt: n.cfg.Now(), Farm: ch.Farm, Tombstone: ch.Delete, Body: ch.Body, Commit: trust.NewCommit()}
	sealed, err := n.cfg.Signer.Seal(mine)
	return Submission{sealed, etag}, mine, err
}

// readBack looks whether what a member says that it wrote is at the origin: here, where
// the origin can be read, or through other members. The word of the writer is enough
// only where it is an admin of the mesh, who may be the only one with an origin.
func (n *Names) readBack(ctx context.Context, w witnessed) error {
	k := w.known
	if c := n.cfg.Reader(); c != nil {
		s, err := n.atOrigin(ctx, c, k.Kind, k.Name)
		if err == nil {
			_, err = n.tell(s.record, s.asked)
		}
		switch {
		case err == nil && s.record.Commit == k.Commit:
			return nil
		case err == nil || errors.Is(err, content.ErrNotFound):
			return fmt.Errorf("%w: a member of farm %q, %s, says that it wrote it, and it is not at the origin", content.ErrUnavailable, w.by.Farm, w.by.Key)
		}
	}
	if w.by.Role == trust.RoleAdmin {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readBackTimeout)
	defer cancel()
	for _, other := range n.askMembers(ctx, Question{Kind: k.Kind, Name: k.Name, Version: k.Version}, membersAsked) {
		if other.known.Commit == k.Commit && other.by.Key != w.by.Key && other.by.Key != n.cfg.Signer.Key.Public() {
			return nil
		}
	}
	return fmt.Errorf("%w: a member of farm %q, %s, says that it wrote it, and no other member has seen it at the origin yet; it is tried again", content.ErrUnavailable, w.by.Farm, w.by.Key)
}

// CommitFor writes a record for a member that can write to no origin: its own record,
// as the signature says, which only it could have made, and which says no more than it
// may.
func (n *Names) CommitFor(ctx context.Context, from trust.Identity, s Submission) (Answer, error) {
	now := n.cfg.Now()
	e, err := n.cfg.Verifier.Open(s.Sealed, now, now)
	if err != nil {
		return Answer{}, err
	}
	if e.Signer.Key != from.Key {
		return Answer{}, fmt.Errorf("commit %s %q: %w: signed by another than the asker", e.Kind, e.Name, content.ErrForbidden)
	}
	if _, err := catalog.Describe(n.cfg.Codec, e); err != nil {
		return Answer{}, fmt.Errorf("commit: %w", err)
	}
	c := n.cfg.Writer()
	if c == nil {
		return Answer{}, fmt.Errorf("commit %s %q: %w: no origin to write to here either", e.Kind, e.Name, content.ErrUnavailable)
	}
	r, err := c.Submit(ctx, s.Sealed, s.ETag)
	if err != nil {
		return Answer{}, err
	}
	k, err := n.describe(r)
	if err == nil {
		err = n.Told(r, now)
	}
	if err != nil {
		return Answer{}, err
	}
	k.read = n.cfg.Now()
	return n.vouch(k)
}
