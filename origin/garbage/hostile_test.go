package garbage

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// tombstones puts a batch that no collection has written.
func (w *world) tombstones(t *testing.T, b Batch) (key string) {
	t.Helper()
	raw, err := b.encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	key = string(content.KeyGarbage) + "mesh/2026112022-" + strings.Repeat("ab", 16) + batchSuffix
	w.written(t, key, raw)
	return key
}

// TestCondemnedByAStranger: whoever writes a batch that is condemned, or of long ago, does not decide what lives: not of
// what a record names, and not of what was put just now and will be.
func TestCondemnedByAStranger(t *testing.T) {
	for _, condemned := range []bool{true, false} {
		w := newWorld(t)
		head := w.publish(t, "x", chunks(100, 1000))
		w.later(past)
		what := chunks(50, 5000)
		fresh, _ := w.pack(t, what, content.Mesh())
		w.tombstones(t, Batch{Condemned: condemned, Delete: []string{head.Manifest.Pack.Key(), fresh.Manifest.Pack.Key()}})
		w.run(t)
		w.put(t, content.KindImage, "y", "", fresh) // so soon that nobody looks
		w.wants["y"] = what
		w.check(t)
		w.later(past)
		w.run(t)
		w.check(t)
		if lost, err := Secure(t.Context(), w, []string{head.Manifest.Pack.Key()}, nil); err != nil || (len(lost) > 0) != condemned {
			t.Errorf("condemned %t: %v, %v", condemned, lost, err) // a run that sleeps may delete it still
		}
		w.remove(t, "x")
		w.remove(t, "y")
		for range 3 {
			w.run(t)
			w.later(past)
		}
		if left := append(w.keys(t, string(content.KeyPacks)), w.keys(t, string(content.KeyGarbage))...); len(left) > 0 {
			t.Errorf("condemned %t: %v are left", condemned, left)
		}
	}
}

// TestBatchOfTheFuture: one whose time has not come is dated anew, and what it has goes.
func TestBatchOfTheFuture(t *testing.T) {
	for _, since := range []int64{math.MaxInt64, time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()} {
		w := newWorld(t)
		head := w.publish(t, "x", chunks(100, 1000))
		w.publish(t, "y", chunks(100, 5000))
		w.remove(t, "x")
		w.tombstones(t, Batch{Since: since, Delete: []string{head.Manifest.Pack.Key()}})
		for range 2 {
			if r := w.run(t); r.Next.After(w.now().Add(past)) {
				t.Errorf("what waits goes at %s", r.Next)
			}
			w.later(past)
		}
		if left := w.keys(t, string(content.KeyPacks)); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
		w.check(t)
	}
}

// TestStubsInACircle end no run.
func TestStubsInACircle(t *testing.T) {
	w := newWorld(t)
	a, b := w.publish(t, "a", chunks(100, 1000)).Manifest.Pack, w.publish(t, "b", chunks(100, 5000)).Manifest.Pack
	w.written(t, a.Key(), pack.NewWriter(a, nil).SealStub(b).Bytes)
	w.written(t, b.Key(), pack.NewWriter(b, nil).SealStub(a).Bytes)
	for range 3 {
		w.run(t)
		w.later(past)
	}
	if left := w.keys(t, string(content.KeyPacks)); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// rewritten is a world in which the one pack of an image was written anew.
func rewritten(t *testing.T) (w *world, head pack.Head) {
	t.Helper()
	w = newWorld(t)
	w.publish(t, "x", chunks(200, 1000))
	head = w.publish(t, "x", chunks(60, 1000))
	w.later(past)
	w.run(t)
	w.later(past)
	if r := w.run(t); r.Repacked.Objects != 1 {
		t.Fatalf("%+v", r)
	}
	w.check(t)
	return w, head
}

// TestWhatABrokenRecordNamesHasMoved: what may be named is held, and so is what took over from it, however much later.
func TestWhatABrokenRecordNamesHasMoved(t *testing.T) {
	w, _ := rewritten(t)
	key := "records/image/x"
	b, _, err := bucket.ReadAll(t.Context(), w, key, content.RecordSizeMax)
	if err != nil {
		t.Fatal(err)
	}
	written := w.now()
	w.breaks(func(mem.Call) mem.Fault { return mem.Fault{} })
	for range 3 {
		w.back(t, key, bytes.Repeat([]byte{1}, 100), time.Date(2026, 11, 20, 23, 0, 0, 0, time.UTC))
		w.run(t)
		w.later(past)
	}
	w.back(t, key, b, written)
	w.check(t)
}

// back puts an object as of a time that has passed.
func (w *world) back(t *testing.T, key string, b []byte, at time.Time) {
	t.Helper()
	now := w.now()
	w.later(at.Sub(now))
	w.written(t, key, b)
	w.later(now.Sub(at))
}

// TestADeadStubIsBroken: it holds nothing, as nobody needs what it says, and goes.
func TestADeadStubIsBroken(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "x", chunks(100, 1000))
	id, err := pack.NewID(content.Mesh(), w.now().Add(-time.Hour), bytes.NewReader(make([]byte, 16)))
	if err != nil {
		t.Fatal(err)
	}
	w.written(t, id.Key(), make([]byte, pack.SizeMin))
	w.publish(t, "y", chunks(100, 5000))
	w.remove(t, "y")
	for range 2 {
		w.run(t)
		w.later(past)
	}
	if left := w.keys(t, string(content.KeyPacks)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	w.check(t)
}

// TestAnotherVolumesID: a record that says that it is of a volume, and isn't, does not say what of its journal is needed.
func TestAnotherVolumesID(t *testing.T) {
	w := newWorld(t)
	id := content.VolumeID{7}
	volume := func(name string, segments ...content.SegmentRef) {
		t.Helper()
		body, err := catalog.Volume{ID: id, Size: 1 << 20, Epoch: 1, Holder: w.signer.Key.Public(), State: catalog.Attached, Policy: catalog.PolicyOrigin, Folded: catalog.Folded{Segments: segments}}.Encode(content.NewCodec())
		if err == nil {
			_, err = w.catalog(t).Commit(t.Context(), catalog.Change{Kind: content.KindVolume, Name: name, Farm: "a", Body: body})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	volume("mine")
	volume("theirs", content.SegmentRef{Volume: id, Epoch: 1, Through: content.Position{Number: 1 << 40}, Bytes: 1})
	tail := content.SegmentRef{Volume: id, Epoch: 1, After: content.Position{Number: 3}}.TailKey()
	w.written(t, tail, make([]byte, 4096))
	for range 3 {
		w.run(t)
		w.later(past)
	}
	if left := w.keys(t, string(content.KeyJournals)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// collection puts the record of who collects, as somebody has signed it.
func (w *world) collection(t *testing.T, by trust.Signer, x catalog.Collection) {
	t.Helper()
	body, err := x.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := by.Seal(trust.Envelope{Kind: content.KindCollection, Name: catalog.CollectionName, Version: 1, SignedAt: w.now(), Body: body, Commit: trust.NewCommit()})
	if err != nil {
		t.Fatal(err)
	}
	w.written(t, "records/collection/origin", sealed)
}

// TestACollectionThatNobodyBelieves, or that goes on in the future, keeps nobody from collecting.
func TestACollectionThatNobodyBelieves(t *testing.T) {
	w := newWorld(t)
	other, by := trust.NewPrivateKey(), w.second(t).Signer
	ahead := w.now().Add(48 * time.Hour).UnixMilli()
	w.collection(t, by, catalog.Collection{Epoch: 1, Holder: by.Key.Public(), Began: ahead, Seen: ahead})
	w.run(t)
	w.collection(t, w.signer, catalog.Collection{Epoch: 5, Holder: w.signer.Key.Public(), Report: []byte("no JSON")})
	w.run(t)
	chain, err := trust.Signer{Key: other}.Issue(trust.Identity{Key: other.Public(), Role: trust.RoleAdmin, Farm: "x"}, w.now()) // of another mesh
	if err != nil {
		t.Fatal(err)
	}
	w.collection(t, trust.Signer{Key: other, Chain: chain}, catalog.Collection{Epoch: 1, Holder: other.Public()})
	w.run(t)
	for _, rubbish := range [][]byte{{}, []byte("rubbish"), make([]byte, 64<<10)} {
		w.written(t, "records/collection/origin", rubbish)
		w.run(t)
	}
	w.verifier.Revoke(map[trust.PublicKey]time.Time{by.Key.Public(): w.now()})
	w.collection(t, by, catalog.Collection{Epoch: 9, Holder: by.Key.Public(), Began: 1, Seen: w.now().UnixMilli()})
	w.run(t)
}
