package records

import (
	"time"

	"github.com/grangemesh/grange/origin/catalog"
)

// Told takes a record that this node has read or written at the origin, by a request
// that it began at asked.
func (n *Names) Told(r catalog.Record, asked time.Time) error {
	k, err := n.describe(r)
	if err == nil {
		n.changeForGood(key(r.Kind, r.Name), n.telling(k, asked))
	}
	return err
}

// tell returns what the name stands for then.
func (n *Names) tell(r catalog.Record, asked time.Time) (Known, error) {
	k, err := n.describe(r)
	if err != nil {
		return Known{}, err
	}
	return n.change(key(r.Kind, r.Name), n.telling(k, asked)).answer(), nil
}

func (n *Names) telling(k Known, asked time.Time) func(entry) entry {
	return func(e entry) entry { return e.taking(k, n.isBad).told(k, asked, n.cfg.Now()) }
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
	old, e := n.apply(id, step)
	if !e.keeps(old) && !n.syncing.Swap(true) {
		n.syncs.Go(func() {
			n.syncing.Store(false) // what changes from now on has it done once more
			n.sync()
		})
	}
	return e
}

// changeForGood is change that waits for the disk.
func (n *Names) changeForGood(id string, step func(entry) entry) {
	if old, e := n.apply(id, step); !e.keeps(old) {
		n.sync()
	}
}

// sync has all changes on disk for good.
func (n *Names) sync() {
	if err := n.index.sync(); err != nil {
		n.cfg.Log.Warn("what is known of names may not be on disk", "err", err)
	}
}

// apply is change that leaves it to the caller to have the disk synced.
func (n *Names) apply(id string, step func(entry) entry) (old, e entry) {
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
	n.answers.drop(id)
	if e.isVoid() {
		n.entries.drop(id)
		return
	}
	n.entries.set(id, e)
	if e.isEmpty() {
		return
	}
	delete(n.absent, id)
	delete(n.unseen, id)
	if k := e.answer(); !k.Tombstone {
		n.answers.set(id, answered{n.resolved(k), k.Commit, k.SeenAt.UnixNano(), k.read.UnixNano(), e.checked.UnixNano()})
	}
}

// stand returns the roots that the name stands for.
func (e entry) stand() (out []rootKey) {
	for _, k := range []*Known{e.said, e.heard} {
		if k != nil && k.Head != nil {
			out = append(out, rootKey{k.Root, k.Scope})
		}
	}
	return out
}
