package garbage

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
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
// what a record names, and not of what was put just now and will be, by a node whose clock is off, at a store that says
// anything of when that was.
func TestCondemnedByAStranger(t *testing.T) {
	for n := range 6 {
		condemned, off := n%2 == 0, time.Duration(n/2-1)*time.Hour
		w := newWorld(t)
		head := w.publish(t, "x", chunks(100, 1000))
		w.later(past)
		what := chunks(50, 5000)
		w.later(off)
		fresh, _ := w.pack(t, what, content.Mesh())
		w.later(-off)
		b, _, err := bucket.ReadAll(t.Context(), w, fresh.Manifest.Pack.Key(), pack.SizeMax)
		if err != nil {
			t.Fatal(err)
		}
		w.back(t, fresh.Manifest.Pack.Key(), b, w.now().Add(-30*24*time.Hour))
		w.tombstones(t, Batch{Condemned: condemned, Delete: []string{head.Manifest.Pack.Key(), fresh.Manifest.Pack.Key()}})
		w.run(t)
		w.put(t, content.KindImage, "y", "", fresh) // so soon that nobody looks
		w.wants["y"] = what
		w.check(t)
		w.later(past)
		w.run(t)
		w.check(t)
		if lost, err := Secure(t.Context(), w, []string{head.Manifest.Pack.Key()}, nil); err != nil || (len(lost) > 0) != condemned {
			t.Errorf("condemned %t, a clock off by %s: %v, %v", condemned, off, lost, err) // a run that sleeps may delete it still
		}
		w.remove(t, "x")
		w.remove(t, "y")
		for range 3 {
			w.run(t)
			w.later(past)
		}
		if left := append(w.keys(t, string(content.KeyPacks)), w.keys(t, string(content.KeyGarbage))...); len(left) > 0 {
			t.Errorf("condemned %t, a clock off by %s: %v are left", condemned, off, left)
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

// TestPackOfTheFuture: what says that it is begun in years is not young till then, nor where the store says so.
func TestPackOfTheFuture(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "x", chunks(100, 1000))
	at := w.now().Add(365 * 24 * time.Hour)
	id := pack.FreshID(content.Mesh(), at)
	w.back(t, id.Key(), make([]byte, 2*pack.SizeMin), at)
	for range 2 {
		w.run(t)
		w.later(past)
	}
	if left := w.keys(t, string(content.KeyPacks)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	w.check(t)
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
	by := w.second(t).Signer
	ahead := w.now().Add(48 * time.Hour).UnixMilli()
	w.collection(t, by, catalog.Collection{Epoch: 1, Holder: by.Key.Public(), Began: ahead, Seen: ahead})
	w.run(t)
	w.collection(t, w.signer, catalog.Collection{Epoch: 5, Holder: w.signer.Key.Public(), Report: []byte("no JSON")})
	w.run(t)
	other := w.stranger(t)
	w.collection(t, other, catalog.Collection{Epoch: 1, Holder: other.Key.Public()})
	w.run(t)
	for _, rubbish := range [][]byte{{}, []byte("rubbish"), make([]byte, 64<<10)} {
		w.written(t, "records/collection/origin", rubbish)
		w.run(t)
	}
	w.verifier.Revoke(map[trust.PublicKey]time.Time{by.Key.Public(): w.now()})
	w.collection(t, by, catalog.Collection{Epoch: 9, Holder: by.Key.Public(), Began: 1, Seen: w.now().UnixMilli()})
	w.run(t)
}

// TestAFullStore: where there is no room for a pack that would be written anew, what is dead goes all the same.
func TestAFullStore(t *testing.T) {
	for range 8 { // batches have random names
		w := newWorld(t)
		w.publish(t, "old", chunks(100, 20_000))
		w.publish(t, "x", chunks(200, 1000))
		w.publish(t, "x", chunks(60, 1000))
		w.remove(t, "old")
		w.run(t)
		w.later(past)
		w.breaks(func(c mem.Call) (f mem.Fault) {
			if c.Op == mem.Put && strings.HasPrefix(c.Key, string(content.KeyPacks)) {
				f.Err = content.ErrNoSpace
			}
			return f
		})
		if r, err := Run(t.Context(), w.config()); !errors.Is(err, content.ErrNoSpace) || r.Deleted.Objects != 1 {
			t.Fatalf("%d went: %v", r.Deleted.Objects, err)
		}
		w.check(t)
		w.breaks(nil)
		w.run(t)
		w.check(t)
	}
}

// TestAManifestOfAnotherRootIsWrittenAnew: what such a root needs of a pack is not told by its manifest, and stays.
func TestAManifestOfAnotherRootIsWrittenAnew(t *testing.T) {
	w := newWorld(t)
	all := chunks(200, 1000)
	head := w.publish(t, "x", all)
	other := w.publish(t, "other", chunks(300, 9000))
	w.publish(t, "x", chunks(60, 1000))
	head.Manifest = other.Manifest
	w.put(t, content.KindImage, "wrong", "", head)
	for range 4 {
		w.later(past)
		w.run(t)
	}
	if r, err := (verify.Config{Reader: pack.NewReader(w)}).Image(t.Context(), head); err != nil || r.Missing > 0 || r.Chunks != 200 {
		t.Fatalf("%+v %v", r, err)
	}
}

// TestABrokenManifestIsAlone: packs are written anew beside it, with all that its map needs.
func TestABrokenManifestIsAlone(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "x", chunks(200, 1000))
	w.publish(t, "y", chunks(200, 5000))
	z := w.publish(t, "z", chunks(100, 1000)) // out of the pack of x
	w.publish(t, "x", chunks(60, 1000))
	w.publish(t, "y", chunks(60, 5000))
	delete(w.wants, "z")
	key := z.Manifest.Pack.Key()
	b, _, err := bucket.ReadAll(t.Context(), w, key, pack.SizeMax)
	if err != nil {
		t.Fatal(err)
	}
	b[z.Manifest.Offset+10] ^= 1
	w.written(t, key, b)
	repacked := int64(0)
	for range 3 {
		w.later(past)
		repacked += w.run(t).Repacked.Objects
	}
	if repacked < 2 {
		t.Errorf("%d packs were written anew", repacked)
	}
	if r, err := (verify.Config{Reader: pack.NewReader(w)}).Image(t.Context(), z); err != nil || r.Missing > 0 || r.Bad > 1 || r.Chunks != 100 {
		t.Fatalf("%+v %v", r, err)
	}
}

// TestARecordThatNobodyBelieves in the place of one that was there: what that has named is held, as is what a damaged one may
// name. One of a member that was revoked since is what it says.
func TestARecordThatNobodyBelieves(t *testing.T) {
	for _, tombstone := range []bool{false, true} {
		w := newWorld(t)
		w.publish(t, "x", chunks(100, 1000))
		small := w.publish(t, "small", chunks(1, 9000))
		key := "records/image/x"
		was, _, err := bucket.ReadAll(t.Context(), w, key, content.RecordSizeMax)
		if err != nil {
			t.Fatal(err)
		}
		body, err := catalog.Image{Head: small, Source: "test"}.Encode(content.NewCodec())
		if err != nil {
			t.Fatal(err)
		}
		if tombstone {
			body = nil
		}
		put := func(by trust.Signer) {
			t.Helper()
			sealed, err := by.Seal(trust.Envelope{Kind: content.KindImage, Name: "x", Version: 9, SignedAt: w.now(), Body: body, Tombstone: tombstone, Commit: trust.NewCommit()})
			if err != nil {
				t.Fatal(err)
			}
			w.written(t, key, sealed)
		}
		put(w.stranger(t))
		for range 3 {
			if r := w.run(t); len(r.Broken) != 1 || r.Broken[0].Name != "image:x" {
				t.Errorf("broken: %+v", r.Broken)
			}
			w.later(past)
		}
		w.written(t, key, was)
		w.check(t)
		by := w.second(t).Signer
		w.verifier.Revoke(map[trust.PublicKey]time.Time{by.Key.Public(): w.now()})
		put(by)
		for range 2 {
			w.run(t)
			w.later(past)
		}
		if left := w.keys(t, string(content.KeyPacks)); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
	}
}

// stranger is an admin of another mesh.
func (w *world) stranger(t *testing.T) trust.Signer {
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: key}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "x"}, w.now())
	if err != nil {
		t.Fatal(err)
	}
	return trust.Signer{Key: key, Chain: chain}
}
