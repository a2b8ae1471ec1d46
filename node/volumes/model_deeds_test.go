package volumes

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// model drives a farm, and the reference beside it.
type model struct {
	*book
	steps   []string  // that the product has
	trouble time.Time // when there was some last
}

const (
	modelSize = 288 << 10
	modelMax  = 448 << 10
	// calm is how long after the last trouble a farm has to do what it is asked.
	calm = 3 * time.Minute
)

// fatal ends a run. What is random in the text is left out of what rapid sees, for which two
// failures are the same only when they say the same.
func (w *model) fatal(r *rapid.T, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.farm.Logf("%s\n%s", strings.Join(w.farm.log, "\n"), text)
	r.Fatal(regexp.MustCompile(`[0-9a-zA-Z]{16,}|/dev/shm/[^ ]*`).ReplaceAllString(text, "..."))
}

func (w *model) note(format string, args ...any) { w.farm.note(format, args...) }

// settled reports whether nothing keeps a member from doing what it is asked for.
func (w *model) settled() bool {
	for _, m := range w.farm.members {
		m.cable.mu.Lock()
		off := m.cable.dead || m.cable.offOrigin || m.cable.offMembers
		m.cable.mu.Unlock()
		if off {
			return false
		}
	}
	return time.Since(w.trouble) > calm
}

// drawFate draws what befalls a member within a deed: nothing, mostly.
func (w *model) drawFate(r *rapid.T) fate {
	kind := rapid.SampledFrom([]string{"", "", "", "", lost, unheard, killedOn, killedPast, killedAt, killedAt}).Draw(r, "fate")
	f := fate{Kind: kind}
	if kind == killedAt {
		f.Step = rapid.SampledFrom(w.steps).Draw(r, "step")
	}
	if kind != "" {
		f.Nth = rapid.IntRange(0, 5).Draw(r, "nth")
	}
	return f
}

// deed has a member do something, and tells the reference how that ended before it revives
// who was killed: how says whether it was done, failed, or nobody can say. sure is a deed that succeeds when all is well.
func (w *model) deed(r *rapid.T, m *member, name string, sure bool, do func() error, then func(how)) {
	f := w.drawFate(r)
	sure = sure && f.Kind == "" && w.settled()
	m.cable.befall(f)
	err := do()
	m.cable.befall(fate{})
	died := m.cable.isDead()
	w.note("%s: %s: %+v, dead %t: %v", m, name, f, died, err)
	switch {
	case died:
		then(unknown)
	case err == nil:
		w.deeds[strings.Fields(name)[0]]++
		then(done)
	case !excused(err):
		w.fatal(r, "%s at %s: %v", name, m, err)
	case sure:
		w.fatal(r, "%s at %s, where all is well: %v", name, m, err)
	default:
		then(failed)
	}
	if f.Kind != "" {
		w.trouble = time.Now()
	}
	if died {
		w.revive(r, m)
	}
}

// how a deed ended.
type how int

const (
	done how = iota
	failed
	unknown // the member was killed
)

// revive starts a member that was killed; power says that it lost what was not synced.
func (w *model) revive(r *rapid.T, m *member) {
	power := rapid.Bool().Draw(r, "power")
	for again := true; again; again = m.cable.isDead() {
		w.kills++
		if power {
			random := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 1))
			losePower(w.farm, m.left, func(n int64) int64 { return random.Int64N(n + 1) })
			for _, v := range w.byID {
				for _, p := range append(slices.Clone(v.behind), v.places[m]) {
					if p != nil && p.m == m {
						p.torn = true
					}
				}
			}
		}
		m.again()
		m.cable.mu.Lock()
		m.cable.offOrigin = rapid.IntRange(0, 4).Draw(r, "without the origin") == 0
		m.cable.mu.Unlock()
		if m.Volumes == nil {
			return
		}
		f := w.drawFate(r)
		w.note("%s: again, after a loss of power %t, without the origin %t: %+v", m, power, m.cable.offOrigin, f)
		m.cable.befall(f)
		m.openAll(context.Background())
		m.cable.befall(fate{})
	}
}

// served draws a volume that a member serves; nil if none is.
func (w *model) served(r *rapid.T) (m *member, v *modelVolume, a *attached) {
	var all []func()
	for _, x := range w.farm.nodes() {
		open := maps.Collect(x.devices)
		for _, name := range slices.Sorted(maps.Keys(open)) {
			e, ok := x.index.Get(name)
			if d := open[name]; ok && d.vol != nil && d.err == nil && w.byID[e.ID] != nil && w.byID[e.ID].places[x] != nil {
				all = append(all, func() { m, v, a = x, w.byID[e.ID], d })
			}
		}
	}
	if len(all) > 0 {
		all[rapid.IntRange(0, len(all)-1).Draw(r, "of them")]()
	}
	return m, v, a
}

// fit reports whether a member serves what is its own by all accounts.
func (w *model) fit(m *member, v *modelVolume, a *attached) bool {
	_, _, st := a.record()
	return st.Stage == right.Serving && v.owner == v.places[m] && !v.passed && !v.removed
}

func (w *model) node(r *rapid.T) *member {
	return w.farm.nodes()[rapid.IntRange(0, farmNodes-1).Draw(r, "node")]
}

func (w *model) member(r *rapid.T) *member {
	return w.farm.members[rapid.IntRange(0, farmMembers-1).Draw(r, "member")]
}

func (w *model) name(r *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "name")
}

// ref parses what the model has written.
func ref(r *rapid.T, text string) content.Ref {
	out, err := content.ParseRef(text)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// write writes, zeroes or discards.
func (w *model) write(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	p := v.places[m]
	sectors := int(a.vol.Geometry().Size / modelSector)
	at := rapid.IntRange(0, sectors-1).Draw(r, "sector")
	n := rapid.IntRange(1, min(64, sectors-at)).Draw(r, "sectors")
	kind, fua := rapid.SampledFrom([]string{"write", "write", "write", "zero", "discard"}).Draw(r, "kind"), rapid.IntRange(0, 3).Draw(r, "fua") == 0
	word := uint64(0)
	if kind == "write" {
		w.word++
		word = 1<<60 | w.word
	}
	next := &state{p.now, p.now.disk.with(at, n, word)}
	w.deed(r, m, kind+" "+v.name, w.fit(m, v, a), func() error {
		if kind == "write" {
			return a.front.WriteAt(context.Background(), bytesOf(n, word), int64(at)*modelSector, fua)
		}
		return a.front.Zero(context.Background(), int64(at)*modelSector, int64(n)*modelSector, kind == "zero", fua)
	}, func(how how) {
		if how != done {
			p.maybe = append(p.maybe, next)
			return
		}
		if p.now = next; fua {
			w.acknowledged(r, v, m, a)
		}
	})
}

func (w *model) acknowledged(r *rapid.T, v *modelVolume, m *member, a *attached) {
	if err := w.acknowledge(v, m, a); err != nil {
		w.fatal(r, "%v", err)
	}
}

// acknowledgedAfter is of a call that had the volume be something else, and flushed.
func (w *model) acknowledgedAfter(r *rapid.T, v *modelVolume, m *member, now *state) {
	a := m.device(v.name)
	if a == nil || a.vol == nil {
		w.fatal(r, "%s does not serve %q any more", m, v.name)
	}
	v.places[m].now, v.places[m].device, v.places[m].maybe, v.rolling = now, a.vol, nil, nil
	w.acknowledged(r, v, m, a)
}

// churn makes a journal of many segments, which are joined.
func (w *model) churn(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil || a.folds == nil {
		return
	}
	p := v.places[m]
	w.deed(r, m, "churn "+v.name, false, func() error {
		for i := range 24 {
			w.word++
			next := &state{p.now, p.now.disk.with(i%4*8, 4, 1<<60|w.word)}
			if p.maybe = append(p.maybe, next); a.vol.WriteAt(context.Background(), bytesOf(4, 1<<60|w.word), int64(i%4*8)*modelSector, false) != nil {
				return content.ErrUnavailable
			}
			at, err := a.vol.Seal(context.Background())
			if err != nil {
				return err
			}
			if p.now, p.maybe = next, nil; m.cable.isDead() {
				p.maybe = append(p.maybe, next.before)
				return content.ErrUnavailable
			}
			p.synced = p.now
			a.vol.Release(at)
		}
		return nil
	}, func(how) {})
}

func (w *model) flush(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	w.deed(r, m, "flush "+v.name, w.fit(m, v, a), func() error { return a.front.Flush(context.Background()) }, func(how how) {
		if how == done {
			w.acknowledged(r, v, m, a)
		}
	})
}

// create makes a volume, of something or blank.
func (w *model) create(r *rapid.T) {
	m, name := w.node(r), w.name(r)
	if _, err := w.farm.said(name); err == nil || w.making[name] != nil {
		return
	}
	if _, here := m.index.Get(name); here {
		return
	}
	spec := Spec{Size: modelSize, Transport: terms.NBD, Durability: w.policy(r)}
	v := &modelVolume{name: name, size: modelSize, born: []*state{{}}, policies: []string{spec.Durability}, places: map[*member]*place{}, snaps: map[uint64]*modelSnap{}}
	w.parent(r, m, &spec, v)
	w.making[name] = v
	w.deed(r, m, fmt.Sprintf("create %s from %s, %s", name, spec.From, spec.Durability), spec.From == (content.Ref{}) || spec.From.Kind == content.KindImage, func() error {
		_, _, err := m.Put(context.Background(), name, spec)
		return err
	}, func(how) {})
}

// parent draws what a volume is made from.
func (w *model) parent(r *rapid.T, m *member, spec *Spec, v *modelVolume) {
	kind := rapid.SampledFrom([]string{"", "image", "volume", "folded", "snapshot"}).Draw(r, "from")
	of := w.named(w.name(r))
	switch {
	case kind == "image":
		spec.From, v.born = ref(r, "image:debian"), []*state{{disk: imageDisk()}}
	case kind == "" || of == nil || of.owner == nil || of.removed:
	case kind == "snapshot" && len(of.snaps) > 0:
		number := rapid.SampledFrom(slices.Sorted(maps.Keys(of.snaps))).Draw(r, "number")
		spec.From, spec.Size, v.size, v.promised = ref(r, fmt.Sprintf("snapshot:%s@%d", of.name, number)), 0, 0, of.folded
		if v.born = []*state{of.snaps[number].state}; of.snaps[number].durable {
			v.promised = of.snaps[number].state
		}
	case kind == "volume":
		spec.From, spec.Size, v.size, v.promised, v.born = ref(r, "volume:"+of.name), 0, 0, of.folded, of.owner.may()
		body, _ := w.farm.said(of.name)
		for _, other := range w.farm.nodes() { // one that lost it, and does not know, has another
			if p := of.places[other]; p != nil {
				v.born = append(v.born, p.may()...)
				if other.key == body.Holder { // which makes a snapshot of it, for another
					of.naming = p.now
				}
			}
		}
	case kind == "folded":
		spec.From, spec.Size, v.size, v.born, v.promised = ref(r, "volume:"+of.name+"?at=folded"), 0, 0, nil, of.folded
		for s := of.owner.now; s != nil && s.has(of.folded); s = s.before {
			v.born = append(v.born, s)
		}
	}
}

// named is the volume that the record of a name is of.
func (w *model) named(name string) *modelVolume {
	body, err := w.farm.said(name)
	if err != nil {
		return nil
	}
	return w.byID[body.ID]
}

func (w *model) policy(r *rapid.T) string {
	return rapid.SampledFrom([]string{"local", "local", "origin", "farm:1", "farm:2"}).Draw(r, "policy")
}

// attach attaches a volume that is there, or takes it over.
func (w *model) attach(r *rapid.T) {
	m, name := w.node(r), w.name(r)
	if rapid.Bool().Draw(r, "with its node away") {
		if body, err := w.farm.said(name); err == nil && body.Holder != m.key {
			w.cut(w.farm.member(body.Holder), true, true)
		}
	}
	takeover := rapid.Bool().Draw(r, "takeover")
	w.deed(r, m, fmt.Sprintf("attach %s, takeover %t", name, takeover), false, func() error {
		_, _, err := m.Put(context.Background(), name, Spec{Takeover: takeover, Transport: terms.NBD})
		return err
	}, func(how) {})
}

func (w *model) detach(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	w.deed(r, m, "detach "+v.name, w.fit(m, v, a), func() error {
		_, err := m.Detach(context.Background(), v.name, rapid.Bool().Draw(r, "force"))
		return err
	}, func(how) {})
}

func (w *model) move(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	to := w.farm.nodes()[1-m.at]
	w.deed(r, m, "move "+v.name, false, func() error {
		_, err := m.Move(context.Background(), v.name, to.String())
		if err != nil { // the other's is but a text
			err = fmt.Errorf("%w: %w", content.ErrUnavailable, err)
		}
		return err
	}, func(how how) { v.released = v.released || how == done && v.owner.m == m && v.owner.maybe == nil })
}

func (w *model) snapshot(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	p, wait := v.places[m], rapid.SampledFrom([]string{"", "", terms.Durable}).Draw(r, "wait")
	v.naming = p.now
	w.deed(r, m, "snapshot "+wait+v.name, w.fit(m, v, a), func() error {
		view, err := m.Snapshot(context.Background(), v.name, SnapshotSpec{Wait: wait})
		if err == nil && !m.cable.isDead() {
			v.snaps[view.Number] = &modelSnap{state: p.now, at: p, durable: view.Durable}
		}
		return err
	}, func(how) {})
}

func (w *model) forget(r *rapid.T) {
	v := w.named(w.name(r))
	if v == nil || len(v.snaps) == 0 {
		return
	}
	number, m := rapid.SampledFrom(slices.Sorted(maps.Keys(v.snaps))).Draw(r, "number"), w.node(r)
	v.snaps[number].going = true
	w.deed(r, m, "remove a snapshot", false, func() error {
		return m.RemoveSnapshot(context.Background(), fmt.Sprintf("%s@%d", v.name, number))
	}, func(how) {})
}

func (w *model) rollback(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil || len(v.snaps) == 0 {
		return
	}
	w.rollBackTo(r, m, v, rapid.SampledFrom(slices.Sorted(maps.Keys(v.snaps))).Draw(r, "number"))
}

func (w *model) rollBackTo(r *rapid.T, m *member, v *modelVolume, number uint64) {
	p := v.places[m]
	next := &state{p.now, v.snaps[number].state.disk}
	w.deed(r, m, "rollback "+v.name, false, func() error {
		_, err := m.Rollback(context.Background(), v.name, fmt.Sprintf("%s@%d", v.name, number))
		return err
	}, func(how how) {
		if v.owner == p || v.passed { // whoever lost it writes nothing to the record
			v.rolling = append(v.rolling, next)
		}
		if how == done {
			w.acknowledgedAfter(r, v, m, next)
		}
	})
}

// goBack empties a part of a volume, has a snapshot of that, writes over it, and rolls the
// volume back, so that what was zeros has to be that again.
func (w *model) goBack(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil || a.folds == nil || !w.fit(m, v, a) {
		return
	}
	p := v.places[m]
	put := func(next *state, do func() error) bool {
		p.maybe = append(p.maybe, next)
		if do() != nil || m.cable.isDead() {
			return false
		}
		p.now, p.maybe = next, nil
		return true
	}
	at := rapid.IntRange(0, 100).Draw(r, "sector")
	emptied := put(&state{p.now, p.now.disk.with(at, 8, 0)}, func() error {
		return a.front.Zero(context.Background(), int64(at)*modelSector, 8*modelSector, false, false)
	})
	if !emptied {
		return
	}
	v.naming = p.now
	view, err := m.Snapshot(context.Background(), v.name, SnapshotSpec{})
	if err != nil {
		return
	}
	v.snaps[view.Number] = &modelSnap{state: p.now, at: p, durable: view.Durable}
	if rapid.Bool().Draw(r, "folded") {
		w.foldOf(r, m, v, a)
		if m.device(v.name) != a {
			return
		}
	}
	w.word++
	word := 1<<60 | w.word
	if put(&state{p.now, p.now.disk.with(at, 4, word)}, func() error {
		return a.front.WriteAt(context.Background(), bytesOf(4, word), int64(at)*modelSector, false)
	}) {
		w.rollBackTo(r, m, v, view.Number)
	}
}

// changes holds what is said to differ between a snapshot and the volume to what does.
func (w *model) changes(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil || a.folds == nil || len(v.snaps) == 0 || !w.fit(m, v, a) || v.places[m].maybe != nil {
		return
	}
	number := rapid.SampledFrom(slices.Sorted(maps.Keys(v.snaps))).Draw(r, "number")
	was, now := v.snaps[number].state.disk, v.places[m].now.disk
	if v.snaps[number].going {
		return
	}
	var said []blockdev.Range
	w.deed(r, m, "changes "+v.name, false, func() error {
		for x, err := range m.Changes(context.Background(), v.name, number, 0) {
			if err != nil {
				return err
			}
			said = append(said, x)
		}
		return nil
	}, func(how how) {
		for i := 0; how == done && i < max(len(was), len(now)); i++ {
			off := int64(i) * modelSector
			told := slices.ContainsFunc(said, func(x blockdev.Range) bool { return x.Offset <= off && off < x.Offset+x.Length })
			if differs := was.at(i) != now.at(i); differs && !told {
				w.fatal(r, "sector %d of %q differs from snapshot %d, and is not among the changes", i, v.name, number)
			}
		}
	})
}

// promote makes an image of a volume, which has what that has.
func (w *model) promote(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil || a.folds == nil || !w.fit(m, v, a) || v.places[m].maybe != nil {
		return
	}
	p := v.places[m]
	w.deed(r, m, "promote "+v.name, false, func() error {
		return m.Promote(context.Background(), ref(r, "volume:"+v.name), PromoteSpec{Image: "made"}, nil)
	}, func(how how) {
		if how != done {
			return
		}
		found, err := w.observe(catalog.Snapshot{Size: m.image.Head.Root.Size, Folded: catalog.Folded{Head: &m.image.Head}})
		if err != nil || !slices.Equal(found, p.now.disk) {
			w.fatal(r, "the image of %q has other bytes: %v", v.name, err)
		}
	})
}

func (w *model) fold(r *rapid.T) {
	m, v, a := w.served(r)
	if a != nil && a.folds != nil {
		w.foldOf(r, m, v, a)
	}
}

func (w *model) foldOf(r *rapid.T, m *member, v *modelVolume, a *attached) {
	p, want := v.places[m], rapid.SampledFrom([]fold.Want{fold.Safe, fold.Chunks}).Draw(r, "want")
	w.deed(r, m, fmt.Sprintf("fold %s %v", v.name, want), w.fit(m, v, a), func() error { return a.folds.Run(context.Background(), want) }, func(how how) {
		if now, err := w.farm.said(v.name); how == done && err == nil && now.Holder == m.key && v.owner == p {
			v.folded, v.promised, p.synced = p.now, p.now, p.now
			delete(w.looked, "volume:"+v.name)
		}
	})
}

func (w *model) resize(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	size := min(modelMax, a.vol.Geometry().Size+int64(rapid.IntRange(1, 64).Draw(r, "more"))*modelSector)
	w.deed(r, m, "resize "+v.name, w.fit(m, v, a), func() error {
		_, err := m.Resize(context.Background(), v.name, size)
		return err
	}, func(how how) {
		if how == done && v.owner == v.places[m] {
			v.size = max(v.size, size)
		}
	})
}

func (w *model) change(r *rapid.T) {
	m, v, a := w.served(r)
	if a == nil {
		return
	}
	policy, degrade := w.policy(r), ""
	if strings.HasPrefix(policy, "farm") && rapid.Bool().Draw(r, "degrade") {
		degrade = "local"
	}
	w.deed(r, m, "policy "+policy+" "+v.name, w.fit(m, v, a), func() error {
		_, _, err := m.Put(context.Background(), v.name, Spec{Durability: policy, Degrade: degrade})
		return err
	}, func(how how) { v.asked(policy, how == done && v.owner == v.places[m]) })
}

func (w *model) remove(r *rapid.T) {
	m, name := w.node(r), w.name(r)
	e, here := m.index.Get(name)
	if !here || rapid.Bool().Draw(r, "no") { // so that volumes grow old
		return
	}
	spec := RemoveSpec{Purge: rapid.Bool().Draw(r, "purge"), Force: rapid.Bool().Draw(r, "force")}
	v := w.byID[e.ID]
	if v == nil {
		return
	}
	if body, err := w.farm.said(name); err != nil || spec.Force || body.ID == v.id && (body.Holder == m.key || body.State == catalog.Released) {
		for _, other := range w.byID { // else it is another's, as its snapshots are
			other.going, other.purged = other.going || other.name == name, other.purged || other.name == name && spec.Purge
		}
	}
	for _, p := range v.behind { // its folder is what is removed
		p.mixed = p.mixed || p.m == m && spec.Purge
	}
	w.deed(r, m, "remove "+name, false, func() error { return m.Remove(context.Background(), name, spec) }, func(how) {})
}
