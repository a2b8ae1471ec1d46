package fold

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/simulations/mem"
)

// TestAFullDiskIsMadeRoomOn: what the bucket has as segments becomes chunks where the disk is
// full, without waiting for its time, and no more than once; and what it lacks is counted.
func TestAFullDiskIsMadeRoomOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		dir := filepath.Join(t.TempDir(), "here")
		if err := volume.Create(dir, w.body.ID); err != nil {
			t.Fatal(err)
		}
		var full atomic.Bool
		vol, err := volume.Open(volume.Config{Dir: dir, ID: w.body.ID, Epoch: 1, Size: w.body.Size, Free: func() float64 {
			if full.Load() {
				return 0
			}
			return 0.07 // a write waits, and passes
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer vol.Close()
		p, pace := NewPaced(vol, w.config()), new(Pace)
		write := func() error { return vol.WriteAt(t.Context(), bytes.Repeat([]byte{1}, block), 0, true) }
		if err := write(); err != nil {
			t.Fatal(err)
		}
		if lag, err := p.Lag(); lag < block || err != nil {
			t.Errorf("the bucket lacks %d bytes, %v, of %d", lag, err, block)
		}
		if err := p.Run(t.Context(), Safe); err != nil {
			t.Fatal(err)
		}
		if len(w.record().Segments) == 0 || p.IsDue(pace, false) {
			t.Fatal("it has no segments, or is due again")
		}
		full.Store(true)
		if err := write(); !errors.Is(err, content.ErrNoSpace) {
			t.Fatalf("a write on a full disk: %v", err)
		}
		if !p.IsDue(pace, false) {
			t.Error("it is not due")
		}
		if err := p.Run(t.Context(), Safe); err != nil || len(w.record().Segments) > 0 {
			t.Errorf("%v, and segments are left: %v", err, w.record().Segments)
		}
		if p.IsDue(pace, false) {
			t.Error("it is due again")
		}
	})
}

// TestTheJournalOfANewVolumeIsCut: what was folded to chunks goes from this disk, of a volume
// that was just made too, whose record ends where its journal begins.
func TestTheJournalOfANewVolumeIsCut(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	vol := w.attach(t, dir, w.record(), 1)
	defer vol.Close()
	p := NewPaced(vol, w.config())
	for range 2 {
		if err := vol.WriteAt(t.Context(), bytes.Repeat([]byte{1}, diskSize), 0, true); err != nil {
			t.Fatal(err)
		}
		if err := p.Run(t.Context(), Chunks); err != nil {
			t.Fatal(err)
		}
		if s := vol.Stats(); s.Dirty > 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestAPolicyThatLeavesTheOriginFreesTheJournal: what a tail kept for the next one goes once no
// flush goes to the origin any more, also of one whose fate is not known; and the next tails,
// when flushes go there again, begin behind what was folded since.
func TestAPolicyThatLeavesTheOriginFreesTheJournal(t *testing.T) {
	for _, unknown := range []bool{false, true} {
		w := newWorld(t)
		dir := filepath.Join(t.TempDir(), "here")
		if err := volume.Create(dir, w.body.ID); err != nil {
			t.Fatal(err)
		}
		vol := w.attach(t, dir, w.record(), 1)
		defer vol.Close()
		line := w.policed()
		cfg := w.config()
		cfg.Tails = func() *Tails { return line.Of(w.record(), vol) }
		p := NewPaced(vol, cfg)
		write := func(fill byte) {
			t.Helper()
			w.disk = bytes.Repeat([]byte{fill}, diskSize)
			if err := vol.WriteAt(t.Context(), w.disk, 0, true); err != nil {
				t.Fatal(err)
			}
		}
		policy := func(to string) {
			t.Helper()
			if err := w.revise(t.Context(), func(v *catalog.Volume) error { v.Policy = to; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		flush := func() error { return line.Of(w.record(), vol).Persist(t.Context(), vol.End()) }
		policy(catalog.PolicyOrigin)
		write(1)
		if err := flush(); err != nil {
			t.Fatal(err)
		}
		if unknown {
			write(2)
			w.failing(func(mem.Call) mem.Fault { return mem.Fault{Err: bucket.ErrUnknown} })
			if err := flush(); err == nil {
				t.Fatal("flushed without an answer")
			}
			w.failing(nil)
		}
		policy(catalog.PolicyLocal)
		for round := range byte(3) {
			write(3 + round)
			if err := p.Run(t.Context(), Chunks); err != nil {
				t.Fatal(err)
			}
			if s := vol.Stats(); s.Dirty > 0 || s.Disk > 2*diskSize {
				t.Errorf("round %d: the journal takes %+v", round, s)
			}
		}
		policy(catalog.PolicyOrigin)
		write(9)
		if err := flush(); err != nil {
			t.Fatal(err)
		}
		chain, err := w.endEpoch(w.record(), 1)
		if err != nil || len(chain) != 1 {
			t.Fatalf("%v, %v", chain, err)
		}
		if !bytes.Equal(w.readElsewhere(t, w.record(), chain...), w.disk) {
			t.Error("a taker lacks what was flushed")
		}
		line.Close()
	}
}

// TestWorkingFileIsSweptAfterACrash: a crash between the making of the file and its removal
// leaves a name that the next start knows as nobody's.
func TestWorkingFileIsSweptAfterACrash(t *testing.T) {
	w, err := newWorking(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if name := filepath.Base(w.Name()); !strings.HasPrefix(name, durable.TempPrefix) {
		t.Errorf("no start removes %q", name)
	}
}
