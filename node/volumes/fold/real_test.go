package fold

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// attach opens a volume of this node, as its record says.
func (w *world) attach(t *testing.T, dir string, v catalog.Volume, epoch uint64, kept ...content.Position) *volume.Volume {
	t.Helper()
	cfg := volume.Config{Dir: dir, ID: v.ID, Epoch: epoch, Size: v.Size, Base: v.Base, Kept: kept}
	if v.Head != nil {
		cfg.Source, cfg.SourceSize, cfg.ChunkSize = root{pack.NewReader(w.origin), *v.Head}, v.Head.Root.Size, v.Head.Root.ChunkSize
	}
	vol, err := volume.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return vol
}

// readElsewhere has another node attach what a record says, and reads all of it.
func (w *world) readElsewhere(t *testing.T, v catalog.Volume, more ...journal.AdoptedSegment) []byte {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "elsewhere")
	if err := volume.Create(dir, v.ID); err != nil {
		t.Fatal(err)
	}
	if err := journal.Adopt(dir, v.ID, append(InBucket(t.Context(), w.bucket, v.Segments), more...), func(string) {}); err != nil {
		t.Fatal(err)
	}
	vol := w.attach(t, dir, v, v.Epoch+1)
	defer vol.Close()
	out := make([]byte, v.Size)
	if err := vol.ReadAt(t.Context(), out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestAVolumeIsTheSameElsewhere: a volume is written all the time, folded, snapshotted,
// closed and opened again; what is durable is read back by another node, byte by byte.
func TestAVolumeIsTheSameElsewhere(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	shadow := make([]byte, diskSize)
	var writing sync.Mutex // of the shadow, and so of what a snapshot is of
	snapshots := map[content.Position][]byte{}
	for round := range 5 {
		vol := w.attach(t, dir, w.record(), 1, w.pending...)
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(round), 1))
			for ctx.Err() == nil {
				off := random.Int64N(diskSize/block) * block
				data := bytes.Repeat([]byte{byte(random.Uint32())}, block)
				writing.Lock()
				err := vol.WriteAt(t.Context(), data, off, false)
				if random.IntN(8) == 0 {
					err = vol.Zero(t.Context(), off, block, false, false)
					clear(data)
				}
				copy(shadow[off:], data)
				writing.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		cfg := w.config()
		cfg.Journal = vol
		f := New(cfg)
		for i, want := range []Want{Safe, Safe, Chunks, Safe} {
			if i != 1 {
				writing.Lock()
				at, err := f.Seal(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				snapshots[at] = bytes.Clone(shadow)
				writing.Unlock()
				w.mu.Lock()
				w.pending = append(w.pending, at)
				w.mu.Unlock()
				if err := w.revise(t.Context(), func(v *catalog.Volume) error { v.Shared = at.Seq; return nil }); err != nil {
					t.Fatal(err)
				}
			}
			if round == 2 && i == 3 {
				break // its snapshot waits over a restart
			}
			if err := f.Run(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		stop()
		group.Wait()
		if err := vol.Close(); err != nil {
			t.Fatal(err)
		}
	}
	vol := w.attach(t, dir, w.record(), 1, w.pending...)
	cfg := w.config()
	cfg.Journal = vol
	if err := New(cfg).Run(t.Context(), Safe); err != nil {
		t.Fatal(err)
	}
	if err := vol.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.readElsewhere(t, w.record()), shadow) {
		t.Error("another node reads other bytes")
	}
	if len(w.settled) != len(snapshots) {
		t.Errorf("%d of %d snapshots are durable", len(w.settled), len(snapshots))
	}
	for at, v := range w.settled {
		if !bytes.Equal(w.readElsewhere(t, v), snapshots[at]) {
			t.Errorf("the snapshot of %v has other bytes", at)
		}
	}
	left, err := os.ReadDir(w.config().Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("working files are left: %v, %v", left, err)
	}
}

// TestASnapshotThatComesBesideAFold: a fold that brings all into chunks finds snapshots whose
// places lie behind the one that it began at. The record goes no further back than it was,
// what the journal is cut at is what the record says, and the next fold makes them durable.
func TestASnapshotThatComesBesideAFold(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	vol := w.attach(t, dir, w.record(), 1)
	write := func(at, n int) {
		t.Helper()
		data := bytes.Repeat([]byte{byte(at)}, n*block)
		copy(w.disk[at*block:], data)
		if err := vol.WriteAt(t.Context(), data, int64(at)*block, false); err != nil {
			t.Fatal(err)
		}
	}
	snapshots, beside := map[content.Position][]byte{}, true
	w.at = func(s Step) error {
		for n := 1; s == StepSealed && beside && n <= content.ChunkSizeDefault/block; n *= 32 { // less than a chunk goes as a segment
			write(16*n, n)
			at, err := vol.Seal(t.Context())
			if err == nil {
				err = w.revise(t.Context(), func(v *catalog.Volume) error { v.Shared = at.Seq; return nil })
			}
			if err != nil {
				return err
			}
			snapshots[at], w.pending = bytes.Clone(w.disk), append(w.pending, at)
		}
		return nil
	}
	write(1, 1)
	cfg := w.config()
	cfg.Journal = vol
	f := New(cfg)
	for range 2 {
		if err := f.Run(t.Context(), Chunks); err != nil {
			t.Fatal(err)
		}
		beside = false
	}
	if err := vol.Close(); err != nil {
		t.Fatal(err)
	}
	vol = w.attach(t, dir, w.record(), 1)
	defer vol.Close()
	here := make([]byte, diskSize)
	if err := vol.ReadAt(t.Context(), here, 0); err != nil || !bytes.Equal(here, w.disk) || !bytes.Equal(w.readElsewhere(t, w.record()), w.disk) {
		t.Errorf("other bytes are read than were written; %v", err)
	}
	for at, want := range snapshots {
		if v, ok := w.settled[at]; !ok || !bytes.Equal(w.readElsewhere(t, v), want) {
			t.Errorf("snapshot of %v: durable %t, or other bytes", at, ok)
		}
	}
}

// TestBytesOfFlushesAtTheOrigin: what random writes of 4 KiB cost the bucket under the policy
// `origin`, flushed each so many, and folded again and again: a tail has little beside what was
// written, and a fold sends that once more where a record would name too many of them.
func TestBytesOfFlushesAtTheOrigin(t *testing.T) {
	for _, each := range []int{1, 8, 64} {
		const writes = 512
		w := newWorld(t)
		w.body.Policy = catalog.PolicyOrigin
		dir := filepath.Join(t.TempDir(), "here")
		if err := volume.Create(dir, w.body.ID); err != nil {
			t.Fatal(err)
		}
		v := w.record()
		v.Size = 64 << 30
		vol := w.attach(t, dir, v, 1)
		w.newTails(content.Position{})
		w.tails.journal = vol
		random, b := rand.New(rand.NewPCG(1, 1)), make([]byte, block)
		for n := range writes {
			b[n%block]++
			if err := vol.WriteAt(t.Context(), b, random.Int64N(v.Size/block)*block, false); err != nil {
				t.Fatal(err)
			}
			if n%each == each-1 {
				if err := w.tails.Persist(t.Context(), vol.End()); err != nil {
					t.Fatal(err)
				}
			}
		}
		tails := w.bytesPut
		cfg := w.config()
		cfg.Journal = vol
		if err := New(cfg).Run(t.Context(), Safe); err != nil {
			t.Fatal(err)
		}
		guest := float64(writes * block)
		t.Logf("a flush each %d writes: tails %.2f, with the fold %.2f times what was written", each, float64(tails)/guest, float64(w.bytesPut)/guest)
		if float64(tails) > 1.1*guest || float64(w.bytesPut) > 2*guest {
			t.Errorf("%d and %d of %d bytes", tails, w.bytesPut, writes*block)
		}
		if err := vol.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
