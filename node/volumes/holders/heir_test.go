package holders

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// heirs is a farm without writers: each member may inherit from the others.
func heirs(t *testing.T, n int) *world {
	w := &world{t: t, cut: map[[2]int]bool{}}
	for range n {
		w.members = append(w.members, &modelMember{someone("north"), newDisk(t)})
		t.Cleanup(func() { _ = w.members[0].Close(); w.members = w.members[1:] })
	}
	return w
}

// gives has a member hold pieces of segments, as a writer brings them.
func (w *world) gives(to int, c wire.Claim, pieces ...wire.Extend) {
	w.t.Helper()
	m := w.members[to]
	m.must(m.Peer, wire.Promise{Claim: c, Name: "web1", Begin: true})
	for _, p := range pieces {
		p.Claim = c
		if held := m.must(m.Peer, p); held != nil {
			w.t.Fatalf("member %d has up to %v only", to, held.End())
		}
	}
}

// heir is a member's way to take over.
func (w *world) heir(at int, lane Lane) *Farm {
	return &Farm{Lane: lane, Self: w.members[at].Identity.Key, Log: slog.New(slog.DiscardHandler), Live: func() []trust.PublicKey { return w.keys(at) }}
}

// merged are the first segments of a line as compaction leaves them.
func merged(t *testing.T, l *line, n int, needs ...uint64) wire.Extend {
	s, b := l.segs[n-1], new(bytes.Buffer)
	m, err := journal.NewMerger(journal.Header{Volume: l.id, Epoch: s.epoch, Number: s.number, After: l.segs[0].after, Merged: s.end().Seq, Needs: max(s.end().Seq, slices.Max(append(needs, 0)))}, b)
	if err == nil {
		_, err = m.Add(extents.Extent{Start: 0, N: 64})
	}
	if err == nil {
		err = m.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	return wire.Extend{At: wire.Place{Epoch: s.epoch, Number: s.number}, Seq: s.end().Seq, Bytes: b.Bytes()}
}

// TestHoldersOfOneSegmentMergedAndNot: of two holders one came after a segment was merged. Who
// inherits from either leaves both with all of it, which each has alone from then on.
func TestHoldersOfOneSegmentMergedAndNot(t *testing.T) {
	for latest := range 2 {
		t.Run(fmt.Sprint(latest), func(t *testing.T) {
			w, l := heirs(t, 4), newLine(theVolume)
			for i := range uint64(20) {
				l.write(1, i)
			}
			l.roll(1)
			l.write(1, 20)
			next := l.pieceOf(claim(1), 1, 0)
			for i, first := range []wire.Extend{l.pieceOf(claim(1), 0, 0), merged(t, l, 1)} {
				pieces := []wire.Extend{first}
				if next.Before = int64(len(first.Bytes)); i == latest {
					pieces = append(pieces, next)
				}
				w.gives(i, claim(1), pieces...)
			}
			r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:2", Holders: w.keys(-1)[:2]}
			in, err := w.heir(2, modelLane{w, 2}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in"))
			if err != nil || len(in.Holders) != 2 {
				t.Fatalf("%v, held by %d", err, len(in.Holders))
			}
			r.Epoch, r.Holders = in.Epoch, in.Holders
			w.members[1-latest].kill()
			w.cut[[2]int{3, latest}] = true
			in, err = w.heir(3, modelLane{w, 3}).Inherit(t.Context(), "web1", r, 8, filepath.Join(t.TempDir(), "in"))
			if err != nil {
				t.Fatal(err)
			}
			if n := len(in.Segments); n == 0 || in.Segments[n-1].Ref.Through != l.End() {
				t.Errorf("inherited %+v, want all up to %v", in.Segments, l.End())
			}
		})
	}
}

// TestHeirThatDiesTakesNothing: two holders have all, in other segments. An heir dies while it has
// one of them take what the other has; then that is lost, too, and the one has all of it alone.
func TestHeirThatDiesTakesNothing(t *testing.T) {
	w, l := heirs(t, 4), newLine(theVolume)
	for i := range uint64(20) {
		l.write(1, i)
		if i%10 == 9 {
			l.roll(1)
		}
	}
	w.gives(0, claim(1), l.pieceOf(claim(1), 0, 0), l.pieceOf(claim(1), 1, 0))
	w.gives(1, claim(1), merged(t, l, 2))
	r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:2", Holders: w.keys(-1)[:2]}
	cuts := 0
	w.slow = func(to int, m wire.Message) {
		if _, ok := m.(wire.Cut); !ok {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := range w.members {
			w.cut[[2]int{2, i}] = cuts > 0
		}
		cuts++
	}
	_, _ = w.heir(2, modelLane{w, 2}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in")) // and never commits
	w.slow = nil
	for lost := range 2 {
		clear(w.cut)
		w.cut[[2]int{3, lost}] = true
		in, err := w.heir(3, modelLane{w, 3}).Inherit(t.Context(), "web1", r, 8, filepath.Join(t.TempDir(), "in"))
		if n := len(in.Segments); err != nil || n == 0 || in.Segments[n-1].Ref.Through.Seq != l.End().Seq {
			t.Errorf("without member %d: %v, inherited %+v, want all up to %v", lost, err, in.Segments, l.End())
		}
	}
}

// TestHolderThatAnswersLate: who has more than the one that an heir takes from, and is heard only
// then, keeps it: if the heir never commits its writer may acknowledge that with others.
func TestHolderThatAnswersLate(t *testing.T) {
	w, l := heirs(t, 4), newLine(theVolume)
	l.write(1, 1)
	w.gives(0, claim(1), l.pieceOf(claim(1), 0, 0))
	l.write(1, 2)
	w.gives(1, claim(1), l.pieceOf(claim(1), 0, 0))
	r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:2", Holders: w.keys(-1)[:2]}
	w.cut[[2]int{2, 1}] = true
	w.slow = func(_ int, m wire.Message) {
		if _, ok := m.(wire.Read); ok {
			w.mu.Lock()
			defer w.mu.Unlock()
			clear(w.cut)
		}
	}
	in, err := w.heir(2, modelLane{w, 2}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in"))
	if err != nil || len(in.Holders) != 2 {
		t.Errorf("%v, held by %d", err, len(in.Holders))
	}
	if held := w.members[1].must(w.members[1].Peer, wire.Status{Claim: claim(1)}); held.End() != l.End() {
		t.Errorf("it has up to %v, and had %v", held.End(), l.End())
	}
}

// TestHeirThatWasAHolder: where the only other member has lost what it held, it begins anew.
func TestHeirThatWasAHolder(t *testing.T) {
	w, l := heirs(t, 2), newLine(theVolume)
	l.write(1, 1)
	w.gives(0, claim(1), l.pieceOf(claim(1), 0, 0))
	r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:2", Holders: w.keys(-1)}
	in, err := w.heir(0, Near{modelLane{w, 0}, w.members[0].Store, w.members[0].Peer}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in"))
	if err != nil || len(in.Holders) != 1 || in.Holders[0] != r.Holders[1] {
		t.Errorf("%v, held by %v", err, in.Holders)
	}
}

// TestTheWritersOwnDiskIsDamaged: what the writer can't read of its journal says nothing of the
// holder, whose copy is the only good one then, and stays.
func TestTheWritersOwnDiskIsDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, k: 1, cut: map[[2]int]bool{}, away: map[int]bool{}, began: map[uint64][]uint64{}}
		w.record = catalog.Volume{ID: theVolume, Epoch: 1, Incarnation: 7, Policy: "farm:1"}
		for range 2 {
			w.members = append(w.members, &modelMember{someone("north"), newDisk(t)})
		}
		l := newLine(theVolume)
		m := w.start(0, l)
		l.write(1, 1)
		if err := m.g.Persist(t.Context(), l.End()); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.bad = fmt.Errorf("%w: bytes that rotted", content.ErrCorrupt)
		l.mu.Unlock()
		if err := m.g.Persist(t.Context(), content.Position{Number: 1, Seq: 2}); !errors.Is(err, content.ErrUnavailable) {
			t.Error(err)
		}
		if held, _, err := w.members[1].tell(w.members[0].Peer, wire.Status{Claim: wire.Claim{Volume: theVolume}}); err != nil || held.End() != l.End() {
			t.Errorf("%v, and it has %+v, want all up to %v", err, held, l.End())
		}
		m.g.Close()
		for _, m := range w.members {
			_ = m.Close()
		}
	})
}

// TestEpochsWithoutAFlush: a volume that nobody flushes gets one epoch after another, as those
// who were about to take it over do not come. Who is named in place of a lost holder has all of it.
func TestEpochsWithoutAFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, k: 2, cut: map[[2]int]bool{}, away: map[int]bool{}, began: map[uint64][]uint64{}}
		w.record = catalog.Volume{ID: theVolume, Epoch: 1, Incarnation: 7, Policy: "farm:2"}
		for range 4 {
			w.members = append(w.members, &modelMember{someone("north"), newDisk(t)})
		}
		l := newLine(theVolume)
		m := w.start(0, l)
		for i := range uint64(200) {
			l.write(1, i)
		}
		if err := m.g.Persist(t.Context(), l.End()); err != nil {
			t.Fatal(err)
		}
		holders := slices.Clone(w.said().Holders)
		at := func(k trust.PublicKey) int { return slices.Index(w.keys(-1), k) }
		for i, m := range w.members[1:] {
			if !slices.Contains(holders, m.Identity.Key) {
				w.members[i+1].fail = func(s step) error { // it promises, and has no room
					if s == stepBegun {
						return content.ErrNoSpace
					}
					return nil
				}
			}
		}
		for round := range 2 {
			w.mu.Lock()
			w.cut[[2]int{0, at(holders[1])}] = round > 0
			c := wire.Claim{Volume: theVolume, Epoch: w.record.Epoch + 1, Incarnation: 99}
			w.mu.Unlock()
			w.members[at(holders[0])].must(w.members[3].Peer, wire.Promise{Claim: c, Name: "web1"})
			wait(t.Context(), time.Minute)
			if now := w.said(); now.Epoch <= c.Epoch {
				t.Fatalf("epoch %d, and %d was promised", now.Epoch, c.Epoch)
			}
		}
		if now := w.said().Holders; !slices.Equal(now, holders) {
			t.Errorf("a member that has nothing is named: %d in place of %d", at(now[1]), at(holders[1]))
		}
		m.g.Close()
		for _, m := range w.members {
			_ = m.Close()
		}
	})
}

// TestWhatIsMergedIsNotWhole: a holder has a merged segment, and not yet what made entries of that
// needless. It has what comes before, by what it says and for an heir.
func TestWhatIsMergedIsNotWhole(t *testing.T) {
	w, l := heirs(t, 3), newLine(theVolume)
	l.write(1, 1)
	l.roll(1)
	l.write(1, 2)
	l.roll(1)
	l.write(1, 3)
	first := l.pieceOf(claim(1), 0, 0)
	l.segs = l.segs[1:]
	second := merged(t, l, 1, 3)
	second.Before = int64(len(first.Bytes))
	w.gives(0, claim(1), first, second)
	if held := w.members[0].must(w.members[0].Peer, wire.Status{Claim: claim(1)}); held.End().Seq != 1 {
		t.Errorf("it says that it has up to entry %d, and entry 3 is missing, by which some of 2 is needless", held.End().Seq)
	}
	r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:1", Holders: w.keys(-1)[:1]}
	in, err := w.heir(1, modelLane{w, 1}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in"))
	if err != nil || len(in.Segments) != 1 || in.Segments[0].Ref.Through.Seq != 1 {
		t.Errorf("%v, inherited %+v, want entry 1", err, in.Segments)
	}
}

// TestMergedWhileItWasAway: a holder got a part of a segment's first entry, and was away while the
// segment was merged, as that of a volume that goes on alone may be. It takes the merged one.
func TestMergedWhileItWasAway(t *testing.T) {
	l, d, who := newLine(theVolume), newDisk(t), someone("north")
	for i := range uint64(20) {
		l.write(1, i)
	}
	part := l.pieceOf(claim(1), 0, 0)
	part.Bytes, part.Seq = part.Bytes[:journal.HeaderSize+7], 0
	d.must(who, wire.Promise{Claim: claim(1), Name: "web1", Begin: true})
	d.must(who, part)
	d.must(who, wire.Promise{Claim: claim(1), Name: "web1"})
	whole := merged(t, l, 1)
	whole.Claim = claim(1)
	if held := d.must(who, whole); held != nil {
		t.Errorf("it has up to %v only", held.End())
	}
	if held := d.must(who, wire.Status{Claim: claim(1)}); held.End() != l.End() {
		t.Errorf("it has up to %v, want %v", held.End(), l.End())
	}
	_ = d.Close()
}

// TestForkOfTheSameEpoch: a fork begins with segments of its parent, which may be of an epoch as
// late as its own, or later. Its holders take them, and who inherits it takes what is latest.
func TestForkOfTheSameEpoch(t *testing.T) {
	for _, epoch := range []uint64{1, 3} {
		w, parent, fork := heirs(t, 4), newLine(content.VolumeID{8}), newLine(theVolume)
		parent.write(epoch, 5)
		fork.segs = append(fork.segs, parent.segs[0])
		fork.roll(1)
		fork.write(1, 6)
		for i := range 2 {
			m := w.members[i]
			m.must(m.Peer, wire.Promise{Claim: claim(1), Name: "web1", Begin: true, Ancestors: []content.VolumeID{{8}}})
			if held, _, err := m.tell(m.Peer, parent.pieceOf(claim(1), 0, 0)); err != nil || held != nil {
				t.Fatalf("its parent's, of epoch %d: %v, %+v", epoch, err, held)
			}
		}
		w.members[1].must(w.members[1].Peer, fork.pieceOf(claim(1), 1, 0))
		r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:2", Holders: w.keys(-1)[:2]}
		in, err := w.heir(2, modelLane{w, 2}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in"))
		if err != nil || len(in.Segments) != 2 || len(in.Holders) != 2 {
			t.Errorf("%v, inherited %+v, held by %d", err, in.Segments, len(in.Holders))
		}
	}
}

// TestHeirThatTakesLong: a volume is taken from a writer that is there, and can write its record,
// and the copying takes longer than who has a holder's promise is taken to be gone after.
func TestHeirThatTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, k: 2, cut: map[[2]int]bool{}, away: map[int]bool{}, began: map[uint64][]uint64{}}
		w.record = catalog.Volume{ID: theVolume, Epoch: 1, Incarnation: 7, Policy: "farm:2"}
		for range 4 {
			w.members = append(w.members, &modelMember{someone("north"), newDisk(t)})
		}
		l := newLine(theVolume)
		m := w.start(0, l)
		for i := range uint64(20) {
			l.write(1, i)
			l.roll(1)
		}
		if err := m.g.Persist(t.Context(), l.End()); err != nil {
			t.Fatal(err)
		}
		w.slow = func(_ int, m wire.Message) {
			if _, ok := m.(wire.Read); ok {
				wait(t.Context(), 3*time.Second)
			}
		}
		at := slices.IndexFunc(w.members[1:], func(m *modelMember) bool { return !slices.Contains(w.said().Holders, m.Identity.Key) }) + 1
		in, err := w.heir(at, modelLane{w, at}).Inherit(t.Context(), "web1", w.said(), 9, filepath.Join(t.TempDir(), "in"))
		if now := w.said(); err != nil || now.Epoch >= in.Epoch {
			t.Errorf("%v, and its writer has epoch %d meanwhile, the heir %d", err, now.Epoch, in.Epoch)
		}
		m.g.Close()
		for _, m := range w.members {
			_ = m.Close()
		}
	})
}

// TestHeirAsksElsewhere: a member that has no room is not sent the whole journal in vain.
func TestHeirAsksElsewhere(t *testing.T) {
	w, l := heirs(t, 3), newLine(theVolume)
	for i := range uint64(200) {
		l.write(1, i)
		l.roll(1)
	}
	var all []wire.Extend
	for i := range 200 {
		all = append(all, l.pieceOf(claim(1), i, 0))
	}
	w.gives(0, claim(1), all...)
	w.members[2].fail = func(s step) error {
		if s == stepBegun {
			return content.ErrNoSpace
		}
		return nil
	}
	var sent atomic.Int64
	w.slow = func(to int, m wire.Message) {
		if _, ok := m.(wire.Extend); ok && to == 2 {
			sent.Add(1)
		}
	}
	r := catalog.Volume{ID: theVolume, Epoch: 1, Policy: "farm:2", Holders: w.keys(-1)[:1]}
	in, err := w.heir(1, modelLane{w, 1}).Inherit(t.Context(), "web1", r, 7, filepath.Join(t.TempDir(), "in"))
	if n := sent.Load(); err != nil || len(in.Holders) != 1 || n > 100 {
		t.Errorf("%v, held by %d; who has no room was sent %d pieces", err, len(in.Holders), n)
	}
}
