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

// Told takes a record that this node has read or written at the origin, by a request
// that it began at asked.
func (n *Names) Told(r catalog.Record, asked time.Time) error {
	_, err := n.tell(r, asked, n.changeForGood)
	return err
}

// tell is Told by one of change, changeForGood and apply, and returns what counts then.
func (n *Names) tell(r catalog.Record, asked time.Time, change func(id string, step func(entry) entry) entry) (Known, error) {
	k, err := n.describe(r)
	if err != nil {
		return Known{}, err
	}
	k.unproved = r.Signer == n.cfg.Signer.Identity() // unless more is known of it
	return change(key(r.Kind, r.Name), func(e entry) entry { return e.taking(k, n.isBad).told(k, asked, n.cfg.Now()) }).answer(), nil
}

// taking has what was taken away compared with a record that is put in its place: one
// that was not signed since is older, whatever its version.
func (e entry) taking(k Known, isBad func(*Known) bool) entry {
	if old := e.taken; old != nil && e.said == nil && old.Commit != k.Commit && !k.SignedAt.After(old.SignedAt) && !isBad(old) {
		e.said = old
	}
	return e
}

// gone notes that the origin has no record of that name, and had none at asked.
func (n *Names) gone(id string, asked time.Time) {
	e := n.change(id, func(e entry) entry {
		switch {
		case e.said == nil && e.taken == nil && e.heard != nil && e.heard.Confirmed:
			return entry{taken: e.heard}
		case e.said == nil:
			return entry{taken: e.taken}
		case !e.said.read.Before(asked): // it was written meanwhile
			return e
		}
		return entry{taken: e.said} // who deletes a name leaves a tombstone; this may be put back as what it was long ago
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.isEmpty() {
		n.absent.add(id, n.cfg.Now(), absentMax)
	}
}

// change brings what is known of a name to another state, in memory, for those who read
// by it, and on disk. It returns that state. Nobody waits for the disk: what a read has
// shown the origin shows again.
func (n *Names) change(id string, step func(entry) entry) entry {
	old, e := n.applied(id, step)
	if !e.keeps(old) && !n.syncing.Swap(true) {
		n.syncs.Go(func() {
			n.syncing.Store(false) // what changes from now on has it done once more
			n.sync()
		})
	}
	return e
}

// changeForGood is change that waits for the disk.
func (n *Names) changeForGood(id string, step func(entry) entry) entry {
	old, e := n.applied(id, step)
	if !e.keeps(old) {
		n.sync()
	}
	return e
}

// apply is change that leaves it to the caller to have the disk synced.
func (n *Names) apply(id string, step func(entry) entry) entry {
	_, e := n.applied(id, step)
	return e
}

// sync has all changes on disk for good.
func (n *Names) sync() {
	if err := n.index.sync(); err != nil {
		n.cfg.Log.Warn("what is known of names may not be on disk", "err", err)
	}
}

// applied is apply that tells what was there before, too.
func (n *Names) applied(id string, step func(entry) entry) (old, e entry) {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	old = n.entry(id)
	e = step(old)
	if e.partial = false; e.said != nil {
		e.taken = nil
	}
	n.enter(id, e)
	var ended []rootKey
	if old.partial || !e.keeps(old) {
		before := n.index.links(id)
		n.save(id, e)
		for _, link := range before {
			if r, ok := linkedRoot(link); ok && len(n.index.linked(link, 1)) == 0 {
				ended = append(ended, r)
			}
		}
	}
	n.mu.Unlock()
	n.learn(e)
	for _, r := range ended {
		n.cfg.Forget(r.root, r.scope)
	}
	if !e.isEmpty() {
		if k := e.answer(); k.Doubt != "" && (old.isEmpty() || old.answer().Doubt != k.Doubt) {
			n.disputes.Inc()
			n.cfg.Log.Warn("the origin contradicts itself", "kind", k.Kind, "name", k.Name, "doubt", k.Doubt)
		}
	}
	return old, e
}

// enter keeps an entry in memory. Called with mu.
func (n *Names) enter(id string, e entry) {
	n.answers.Remove(id)
	if e.isVoid() {
		n.entries.Remove(id)
		return
	}
	n.entries.Add(id, e)
	if e.isEmpty() {
		return
	}
	delete(n.absent, id)
	delete(n.unseen, id)
	if k := e.answer(); !k.Tombstone {
		n.answers.Add(id, answered{n.resolved(k), k.Commit, k.SeenAt.UnixNano(), k.read.UnixNano(), e.checked.UnixNano()})
	}
}

func (e entry) stand() (out []rootKey) {
	for _, k := range []*Known{e.said, e.heard} {
		if k != nil && k.Head != nil {
			out = append(out, rootKey{k.Root, k.Scope})
		}
	}
	return out
}

// readBackTimeout bounds the question to other members whether a record that one wrote
// for this node is at the origin: they look there.
const readBackTimeout = 3 * time.Second

// Commit writes a record, at this node's origin or through a member. One that a member
// says it wrote is ErrUnavailable until another has seen it at the origin, or this
// node: it is known here, unconfirmed, and the same Commit again writes no other. It has all
// stay that the record names: where some of that is gone, the record is again what it was
// before, and the error a *catalog.GoneError.
func (n *Names) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	ch.Base = n.base(ch)
	if c := n.cfg.Writer(); c != nil {
		r, err := n.commitAtOrigin(ctx, c, ch)
		if err != nil {
			n.cfg.Lost(err)
		}
		return r, err
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
			_, err = n.tell(s.record, s.asked, n.change)
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
	r, err := n.submitAtOrigin(ctx, c, e, s)
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
