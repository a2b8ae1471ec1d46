package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// tend does what a node does by itself.
func (w *model) tend(r *rapid.T) {
	m := w.node(r)
	<-time.After(tryAfterMax)
	w.deed(r, m, "tend", false, func() error { w.tendTo(m); return nil }, func(how) {})
}

func (w *model) tendTo(m *member) {
	for _, e := range m.index.Sorted() {
		_ = m.commitLater(context.Background(), e.Name)
	}
	m.lookAtOwned(context.Background(), right.NewLooks(0, time.Now().Add(-time.Hour)))
	m.giveUpLost(context.Background())
	m.orphans.Keep(context.Background())
	for _, e := range m.index.Sorted() {
		m.serveLater(context.Background(), e.Name)
	}
}

func (w *model) cut(m *member, origin, members bool) {
	m.cable.mu.Lock()
	defer m.cable.mu.Unlock()
	m.cable.offOrigin, m.cable.offMembers = m.cable.offOrigin || origin, m.cable.offMembers || members
	w.note("%s: cut off from the origin %t, from members %t", m, m.cable.offOrigin, m.cable.offMembers)
	w.trouble = time.Now()
}

func (w *model) heal() {
	w.note("healed")
	for _, m := range w.farm.members {
		m.cable.mu.Lock()
		m.cable.offOrigin, m.cable.offMembers = false, false
		m.cable.mu.Unlock()
	}
	w.trouble = time.Now()
}

// stand has a process stand still for longer than the mesh may take to go on without it.
func (w *model) stand(r *rapid.T) {
	m := w.node(r)
	w.note("%s: stands still", m)
	m.slept += 10 * time.Second
	m.pulse.Look()
	w.trouble = time.Now()
}

// kill ends a member between two deeds.
func (w *model) kill(r *rapid.T) {
	m := w.member(r)
	m.cable.kill()
	w.trouble = time.Now()
	w.revive(r, m)
}

// after is what comes behind each deed: time, and the check.
func (w *model) after(r *rapid.T) {
	<-time.After(time.Second)
	synctest.Wait()
	if err := w.check(); err != nil {
		w.fatal(r, "%v", err)
	}
	clear(w.making) // what is to be there is by now
	for _, v := range w.byID {
		v.naming = nil
	}
}

// last has all be well, and each volume be served once more.
func (w *model) last(r *rapid.T) {
	w.heal()
	for range 3 {
		<-time.After(calm)
		for _, m := range w.farm.nodes() {
			w.tendTo(m)
		}
		w.after(r)
	}
	w.well = true
	for _, name := range []string{"a", "b", "c"} {
		body, err := w.farm.said(name)
		if errors.Is(err, content.ErrNotFound) {
			continue
		}
		if err != nil {
			w.fatal(r, "%v", err)
		}
		m := w.farm.nodes()[0]
		if body.State == catalog.Attached {
			m = w.farm.member(body.Holder)
		}
		if _, _, err := m.Put(context.Background(), name, Spec{Transport: terms.NBD}); err != nil {
			w.fatal(r, "when all is well, %s does not serve %q: %v", m, name, err)
		}
		w.after(r)
		a := m.device(name)
		if err := a.folds.Run(context.Background(), fold.Safe); err != nil { // holders that lack what was compacted begin there
			w.fatal(r, "when all is well, a fold of %q: %v", name, err)
		}
		<-time.After(calm)
		if err := a.front.Flush(context.Background()); err != nil {
			w.fatal(r, "when all is well, a flush of %q: %v", name, err)
		}
		w.acknowledged(r, w.byID[body.ID], m, a)
	}
	w.leftBehind(r)
}

// leftBehind holds that what a takeover has left with another is there under its name.
func (w *model) leftBehind(r *rapid.T) {
	for _, v := range w.byID {
		for _, p := range v.behind {
			name := fmt.Sprintf("%s@e%d-orphan", v.name, p.epoch)
			if v.removed || v.purged || p.mixed || v.owner.now.has(p.now) {
				continue
			}
			_, body, err := p.m.records().Snapshot(context.Background(), name)
			if errors.Is(err, content.ErrNotFound) && p.torn && v.owner.now.has(p.synced) { // all that was its alone went with the power
				continue
			}
			var found disk
			if err == nil {
				found, err = w.visit(p.m, body)
			}
			if err != nil {
				w.fatal(r, "what was taken from %s: %v", p.m, err)
			}
			if !slices.ContainsFunc(p.may(), func(from *state) bool { return from.find(found).has(p.synced) }) {
				w.fatal(r, "%s has other bytes than %s had", name, p.m)
			}
		}
	}
}
