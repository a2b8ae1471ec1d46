package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// pair are two nodes of a farm at one origin.
type pair struct {
	a, b  *world
	store *store
	shelf shelf
}

func newPair(t *testing.T) *pair {
	p := &pair{a: newWorld(t), b: newWorld(t), store: newStore(), shelf: newShelf(t)}
	p.b.cfg.Self = trust.PublicKey{2}
	for _, w := range []*world{p.a, p.b} {
		p.join(w)
	}
	return p
}

func (p *pair) join(w *world) {
	w.cfg.Library, w.cfg.Registry = p.shelf, p.store
	w.cfg.Origin = func() (bucket.Bucket, error) { return p.shelf.bucket, nil }
	w.cfg.Call = func(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error) {
		other := p.a
		if to == p.b.cfg.Self {
			other = p.b
		}
		return other.Answer(ctx, trust.Identity{Role: trust.RoleNode, Farm: testFarm}, method, body)
	}
}

const testSize = 1 << 20

// put makes or attaches a volume.
func (w *world) put(t *testing.T, name string, spec Spec) View {
	t.Helper()
	spec.Transport = terms.NBD
	view, _, err := w.Put(t.Context(), name, spec)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// fill writes at random, to the volume and to what it should be.
func (w *world) fill(t *testing.T, name string, shadow []byte, writes int, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 5))
	for range writes {
		off := random.Int64N(int64(len(shadow))/512) * 512
		data := bytes.Repeat([]byte{byte(random.Uint32())}, int(min(512*(1+random.Int64N(40)), int64(len(shadow))-off)))
		if random.IntN(5) == 0 {
			clear(data)
		}
		copy(shadow[off:], data)
		if err := w.device(name).vol.WriteAt(t.Context(), data, off, false); err != nil {
			t.Fatal(err)
		}
	}
}

// is fails unless a volume reads as it should.
func (w *world) is(t *testing.T, name string, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := w.device(name).vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("volume %s reads other bytes, or not: %v", name, err)
	}
}

// exported is what an export of a reference has.
func (w *world) exported(t *testing.T, text string) []byte {
	t.Helper()
	ref, err := content.ParseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := w.Export(t.Context(), ref, f, func(done, total int64) {
		if done > total {
			t.Error(done, total)
		}
	}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// imageRef is the image of the shelf, and imageBytes what a volume of testSize begins as.
func imageBytes() []byte {
	out := make([]byte, testSize)
	for i := range imageSize {
		out[i] = byte(i/content.ChunkSizeDefault + 1)
	}
	return out
}

func refOf(t *testing.T, text string) content.Ref {
	t.Helper()
	ref, err := content.ParseRef(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestSnapshotsAreTheSameElsewhere: durable ones read back byte by byte at another node,
// through folds of each kind; those that are not say so, and are only here.
func TestSnapshotsAreTheSameElsewhere(t *testing.T) {
	p := newPair(t)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	states := map[uint64][]byte{}
	for n := range uint64(6) {
		p.a.fill(t, "disk", shadow, 12, n)
		view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Label: "l", Wait: []string{"", terms.Durable}[n%2]})
		if err != nil || view.Number != n+1 || view.Durable != (n%2 == 1) {
			t.Fatalf("%+v, %v", view, err)
		}
		states[view.Number] = bytes.Clone(shadow)
		p.a.fill(t, "disk", shadow, 3, n+100)
		if n%2 == 1 {
			if err := p.a.device("disk").folds.Run(t.Context(), []fold.Want{fold.Safe, fold.Chunks}[n/2%2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.a.is(t, "disk", shadow)
	p.a.fill(t, "disk", shadow, 3, 200)
	view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{})
	if err != nil || view.Durable {
		t.Fatalf("%+v, %v", view, err)
	}
	if err := p.b.Export(t.Context(), refOf(t, "snapshot:disk@7"), nil, nil); !errors.Is(err, content.ErrConflict) {
		t.Errorf("what is not durable, elsewhere: %v", err)
	}
	if got := p.a.exported(t, "snapshot:disk@7"); !bytes.Equal(got, shadow) {
		t.Error("the one that is not durable has other bytes here")
	}
	states[7] = bytes.Clone(shadow)
	// It waits over a restart.
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	p.a.is(t, "disk", shadow)
	p.a.fill(t, "disk", shadow, 5, 77)
	if err := p.a.Settle(t.Context(), "disk@7"); err != nil {
		t.Fatal(err)
	}
	all, err := p.b.Snapshots(t.Context(), "disk")
	if err != nil || len(all) != 7 {
		t.Fatalf("%d snapshots, %v", len(all), err)
	}
	for _, s := range all {
		if !s.Durable || s.Label != "l" && s.Number != 7 {
			t.Errorf("%+v", s)
		}
		if !bytes.Equal(p.b.exported(t, "snapshot:"+s.ID), states[s.Number]) {
			t.Errorf("%s has other bytes elsewhere", s.ID)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(p.b.cfg.Dir, index.ViewsDir)); len(left) > 0 {
		t.Errorf("views are left: %v", left)
	}
	for range 2 {
		if err := p.a.RemoveSnapshot(t.Context(), "disk@3"); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.b.FindSnapshot(t.Context(), "disk@3"); !errors.Is(err, content.ErrNotFound) {
		t.Error(err)
	}
}

// TestForks of an image, a volume and a snapshot, on the same node and on another, before
// and after folds; each goes its own way, and what they name stays in the bucket.
func TestForks(t *testing.T) {
	p := newPair(t)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	p.a.fill(t, "disk", shadow, 12, 1)
	forks := map[string][]byte{}
	at := map[string]*world{}
	fork := func(w *world, from string) {
		name := fmt.Sprintf("fork%d", len(forks))
		w.put(t, name, Spec{From: refOf(t, from)})
		forks[name], at[name] = bytes.Clone(shadow), w
		w.is(t, name, shadow)
		w.fill(t, name, forks[name], 4, uint64(len(forks)))
		if body, err := p.store.body(name); err != nil || body.From != refOf(t, from) {
			t.Errorf("%s: %+v, %v", name, body, err)
		}
	}
	fork(p.a, "volume:disk")
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	fork(p.a, "snapshot:disk@1")
	if _, _, err := p.b.Put(t.Context(), "no", Spec{From: refOf(t, "snapshot:disk@1"), Transport: terms.NBD}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("not durable, elsewhere: %v", err)
	}
	fork(p.b, "volume:disk") // its node makes a snapshot
	fork(p.b, "snapshot:disk@2")
	fork(p.b, "volume:disk?at=folded")
	shadow = forks["fork1"]
	fork(p.a, "volume:fork1")
	for name, w := range at {
		if err := w.device(name).folds.Run(t.Context(), fold.Chunks); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Chunks); err != nil {
		t.Fatal(err)
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
		t.Fatal(err)
	}
	for name, w := range at {
		w.is(t, name, forks[name])
		if got := w.exported(t, "volume:"+name+"?at=folded"); !bytes.Equal(got, forks[name]) {
			t.Errorf("%s has other bytes in the bucket", name)
		}
	}
}

// TestChangesAreAByteComparison of two snapshots, in whole units; wherever it is asked.
func TestChangesAreAByteComparison(t *testing.T) {
	p := newPair(t)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	var states [][]byte
	for n := range uint64(5) {
		p.a.fill(t, "disk", shadow, int(n)*3, n)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
			t.Fatal(err)
		}
		states = append(states, bytes.Clone(shadow))
		if n == 2 {
			if err := p.a.device("disk").folds.Run(t.Context(), fold.Chunks); err != nil {
				t.Fatal(err)
			}
		}
	}
	states = append(states, shadow)
	const unit = 4096
	check := func(w *world, from, to int) {
		t.Helper()
		var want, got []blockdev.Range
		for off := int64(0); off < testSize; off += unit {
			if bytes.Equal(states[from][off:off+unit], states[to%len(states)][off:off+unit]) {
				continue
			}
			if n := len(want); n > 0 && want[n-1].Offset+want[n-1].Length == off {
				want[n-1].Length += unit
			} else {
				want = append(want, blockdev.Range{Offset: off, Length: unit})
			}
		}
		number := uint64(to + 1)
		if to == len(states)-1 {
			number = 0
		}
		for x, err := range w.Changes(t.Context(), "disk", uint64(from+1), number) {
			if err != nil {
				t.Fatalf("from %d to %d: %v", from+1, number, err)
			}
			got = append(got, x)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("from %d to %d: %v, want %v", from+1, number, got, want)
		}
	}
	for from := range 5 {
		for to := range 6 {
			check(p.a, from, to)
		}
	}
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	for from := range 5 {
		check(p.b, from, (from+3)%5)
		check(p.a, from, 5)
	}
}

// TestFlushesOfAnOriginVolume are read by who takes it over; the old writer flushes nothing more.
func TestFlushesOfAnOriginVolume(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: catalog.PolicyOrigin})
	for n := range uint64(5) {
		p.a.fill(t, "disk", shadow, 3, n)
		if err := p.a.device("disk").vol.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n == 2 {
			if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", shadow)
	if err := p.a.device("disk"); err != nil && err.vol != nil {
		if werr := err.vol.WriteAt(t.Context(), make([]byte, 512), 0, true); werr == nil {
			t.Error("a flush was acknowledged after the takeover")
		}
	}
	p.b.fill(t, "disk", shadow, 3, 9)
	if err := p.b.device("disk").vol.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.b = p.b.again(t)
	p.b.cfg.Self = trust.PublicKey{2}
	p.join(p.b)
	p.b.openAll(t.Context())
	p.b.is(t, "disk", shadow)
	p.b.fill(t, "disk", shadow, 3, 10)
	if err := p.b.device("disk").vol.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := newWorld(t)
	third.cfg.Self = trust.PublicKey{3}
	p.join(third)
	third.put(t, "disk", Spec{Takeover: true})
	third.is(t, "disk", shadow)
}

// TestRollback: the volume is what its snapshot is, here and in the bucket; those since
// stay; what a crash has cut short is completed before anybody reads.
func TestRollback(t *testing.T) {
	p := newPair(t)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	var states [][]byte
	for n := range uint64(3) {
		p.a.fill(t, "disk", shadow, 10, n)
		if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: []string{terms.Durable, ""}[n%2]}); err != nil {
			t.Fatal(err)
		}
		states = append(states, bytes.Clone(shadow))
	}
	p.a.fill(t, "disk", shadow, 10, 9)
	for _, n := range []int{1, 0, 2} {
		if _, err := p.a.Rollback(t.Context(), "disk", fmt.Sprintf("disk@%d", n+1)); err != nil {
			t.Fatal(err)
		}
		p.a.is(t, "disk", states[n])
	}
	if err := p.a.device("disk").revise(t.Context(), func(body *catalog.Volume) error { body.Rolling = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.openAll(t.Context())
	p.a.is(t, "disk", states[0])
	if e, _ := p.a.index.Get("disk"); e.Rolling != 0 {
		t.Error("it is rolled back again and again")
	}
	if err := p.a.device("disk").folds.Run(t.Context(), fold.Safe); err != nil {
		t.Fatal(err)
	}
	for n := range states {
		if !bytes.Equal(p.b.exported(t, fmt.Sprintf("snapshot:disk@%d", n+1)), states[n]) {
			t.Errorf("snapshot %d has other bytes", n+1)
		}
	}
	if _, err := p.a.Rollback(t.Context(), "disk", "disk@9"); !errors.Is(err, content.ErrNotFound) {
		t.Error(err)
	}
}

// TestNothingIsLeftOfALook: what is exported, compared or published from another node than the
// volume's is of a snapshot that goes with it.
func TestNothingIsLeftOfALook(t *testing.T) {
	p := newPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", want, 4, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Label: "mine", Wait: terms.Durable}); err != nil {
		t.Fatal(err)
	}
	p.a.fill(t, "disk", want, 4, 2)
	if !bytes.Equal(p.b.exported(t, "volume:disk"), want) {
		t.Error("it has other bytes")
	}
	for _, err := range p.b.Changes(t.Context(), "disk", 1, 0) {
		if err != nil {
			t.Error(err)
		}
	}
	if left, err := p.b.Snapshots(t.Context(), "disk"); err != nil || len(left) != 1 || left[0].Label != "mine" {
		t.Errorf("%+v, %v", left, err)
	}
}

// TestPromote publishes a volume and a snapshot; what the image may refer to is not sent
// again. TestPurge's part: a volume goes with its snapshots, or keeps them.
func TestPromote(t *testing.T) {
	p := newPair(t)
	images := map[string]catalog.Image{}
	p.a.cfg.Publish = func(_ context.Context, name string, body catalog.Image, _ bool) error {
		images[name] = body
		return nil
	}
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	p.a.fill(t, "disk", shadow, 3, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable}); err != nil {
		t.Fatal(err)
	}
	was := bytes.Clone(shadow)
	p.a.fill(t, "disk", shadow, 3, 2)
	packs := func() int { return len(p.shelf.bucket.Keys("packs/")) }
	before := packs()
	for name, want := range map[string]struct {
		ref   string
		scope content.Scope
		bytes []byte
	}{"mesh": {"volume:disk", content.Scope{}, shadow}, "farm": {"volume:disk", content.Farm(testFarm), shadow}, "old": {"snapshot:disk@1", content.Mesh(), was}} {
		if err := p.a.Promote(t.Context(), refOf(t, want.ref), PromoteSpec{Image: name, Scope: want.scope}, nil); err != nil {
			t.Fatal(err)
		}
		body := images[name]
		m, err := p.a.bucket().Open(t.Context(), catalog.Snapshot{Size: testSize, Folded: catalog.Folded{Head: &body.Head}})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, testSize)
		if err := errors.Join(m.Read(t.Context(), got, 0), m.Close()); err != nil || !bytes.Equal(got, want.bytes) || body.Source != want.ref {
			t.Errorf("%s has other bytes: %v", name, err)
		}
	}
	if images["farm"].Stored != images["mesh"].Stored { // all of which is kept as it stands, and made anew
		t.Errorf("the same chunks take %d bytes and %d", images["farm"].Stored, images["mesh"].Stored)
	}
	t.Logf("%d packs, %d before", packs(), before)
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: true}); err != nil {
		t.Fatal(err)
	}
	if left, err := p.b.Snapshots(t.Context(), "disk"); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestSnapshotsOutliveTheirVolume: those that are only here get into the bucket before the
// volume goes.
func TestSnapshotsOutliveTheirVolume(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 5, 1)
	if _, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil {
		t.Fatal(err)
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.b.exported(t, "snapshot:disk@1"), shadow) {
		t.Error("the snapshot has other bytes")
	}
}

// TestDetachBringsAllToTheBucket: another node attaches what was released, and has it all.
func TestDetachBringsAllToTheBucket(t *testing.T) {
	p := newPair(t)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	p.a.fill(t, "disk", shadow, 20, 1)
	if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	if view, err := p.a.Find(t.Context(), "disk"); err != nil || view.State != terms.StateReleased {
		t.Errorf("%+v, %v", view, err)
	}
	p.b.put(t, "fork", Spec{From: refOf(t, "volume:disk")})
	if p.b.is(t, "fork", shadow); !bytes.Equal(p.b.exported(t, "volume:disk"), shadow) {
		t.Error("what nobody has is exported as something else")
	}
	p.b.put(t, "disk", Spec{})
	p.b.is(t, "disk", shadow)
	if _, err := p.a.Find(t.Context(), "disk"); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("who released it says: %v", err)
	}
	if body, err := p.store.body("disk"); err != nil || len(body.Segments) > 0 || body.Holder != p.b.cfg.Self {
		t.Errorf("%+v, %v", body, err)
	}
}

// BenchmarkForks makes forks of one image.
func BenchmarkForks(b *testing.B) {
	w := newWorld(b)
	w.cfg.Library, w.cfg.Registry = newShelf(b), newStore()
	for i := 0; b.Loop(); i++ {
		if _, _, err := w.Put(b.Context(), fmt.Sprintf("fork%d", i), Spec{From: content.Ref{Kind: content.KindImage, Name: "debian"}, Transport: terms.NBD}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSnapshotsOfANameUsedAgain: a volume that gets the name of one whose snapshots stayed
// numbers its own behind them.
func TestSnapshotsOfANameUsedAgain(t *testing.T) {
	p := newPair(t)
	for _, want := range []string{"disk@1", "disk@2", "disk@3"} {
		p.a.put(t, "disk", Spec{Size: testSize})
		view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{Wait: terms.Durable})
		if err != nil || view.ID != want {
			t.Fatalf("%q, %v; want %s", view.ID, err, want)
		}
		if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPassingSnapshotOfAnEarlierVolume: what was made to be looked at from elsewhere is not removed
// once the volume was, and another has its name and number.
func TestPassingSnapshotOfAnEarlierVolume(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	m, err := p.b.Volumes.moment(t.Context(), refOf(t, "volume:disk"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Purge: true}); err != nil {
		t.Fatal(err)
	}
	p.a.put(t, "disk", Spec{Size: testSize})
	if view, err := p.a.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil || view.ID != "disk@1" {
		t.Fatalf("%+v, %v", view, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if !p.store.has(content.KindSnapshot, "disk@1") {
		t.Error("the snapshot of the next volume is gone")
	}
}
