package records

import (
	"time"

	"github.com/grangemesh/grange/origin/catalog"
)

// Told takes a record that this node has read or written at the origin, by a request
// that it began at asked.
func (n *Names) Told(r catalog.Record, asked time.Time) error {
	_, err := n.tell(r, asked)
	return err
}

// tell returns what the name stands for then.
func (n *Names) tell(r catalog.Record, asked time.Time) (Known, error) {
	k, err := n.describe(r)
	if err != nil {
		return Known{}, err
	}
	id := key(r.Kind, r.Name)
	return n.change(id, func(e entry) entry {
		if old, ok := n.taken[id]; ok && e.said == nil && old.Commit != k.Commit && !k.SignedAt.After(old.SignedAt) && !n.isBad(&old) {
			e.said = &old // to be compared with
		}
		return e.told(k, asked, n.cfg.Now())
	}).answer(), nil
}

// gone notes that the origin has no record of that name, and had none at asked.
func (n *Names) gone(id string, asked time.Time) {
	n.change(id, func(e entry) entry {
		if e.said != nil && !e.said.read.Before(asked) { // it was written meanwhile
			return e
		}
		if e.said != nil { // who deletes a name leaves a tombstone; this may be put back as what it was long ago
			n.taken[id] = *e.said
		}
		return entry{}
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, back := n.entries[id]; !back {
		n.absent.add(id, n.cfg.Now(), absentMax)
	}
}

// change brings what is known of a name to another state, in memory, for those who read
// by it, and on disk. It returns that state.
func (n *Names) change(id string, step func(entry) entry) entry {
	old, e := n.apply(id, step)
	if a, b := old.kept(), e.kept(); (a == nil) != (b == nil) || a != nil && a.Commit != b.Commit || (old.said == nil) != (e.said == nil) {
		n.save(id)
	}
	if !e.isEmpty() {
		if k := e.answer(); k.Doubt != "" && (old.isEmpty() || old.answer().Doubt != k.Doubt) {
			n.disputes.Inc()
			n.cfg.Log.Warn("the origin contradicts itself", "kind", k.Kind, "name", k.Name, "doubt", k.Doubt)
		}
	}
	return e
}

func (n *Names) apply(id string, step func(entry) entry) (old, e entry) {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	old = n.entries[id]
	e = step(old)
	if e.isEmpty() {
		delete(n.entries, id)
	} else {
		n.entries[id] = e
		delete(n.absent, id)
		if e.said != nil {
			delete(n.taken, id)
		}
	}
	ended := n.count(old, e)
	n.mu.Unlock()
	if !e.isEmpty() {
		n.cfg.Learn(e.answer())
	}
	for _, r := range ended {
		n.cfg.Forget(r.root, r.scope)
	}
	return old, e
}

// count keeps up how many names stand for each root, and returns those that no name
// stands for any more. Called with mu.
func (n *Names) count(old, e entry) (ended []rootKey) {
	before, after := old.stand(), e.stand()
	for _, r := range after {
		n.roots[r]++
	}
	for _, r := range before {
		if n.roots[r]--; n.roots[r] == 0 {
			delete(n.roots, r)
			ended = append(ended, r)
		}
	}
	return ended
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
