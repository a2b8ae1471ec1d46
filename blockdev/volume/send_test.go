package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// follow takes all that is durable behind a position into files, as a holder does.
func follow(t *testing.T, v *Volume, dir string, at content.Position) content.Position {
	t.Helper()
	for {
		var b bytes.Buffer
		next, n, err := v.ReadSegments(&b, at, 3*extents.Unit)
		must(t, err)
		if n != int64(b.Len()) {
			t.Fatalf("%d bytes are said to be %d", b.Len(), n)
		}
		if n == 0 {
			if next != at {
				t.Fatalf("nothing leads from %v to %v", at, next)
			}
			return at
		}
		name := journal.Header{Epoch: 1, Number: next.Number}.Name()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		must(t, err)
		_, err = f.Write(b.Bytes())
		must(t, errors.Join(err, f.Close()))
		at = next
	}
}

// TestHolderFollows takes a journal over piece by piece while it is written, flushed and
// compacted, and opens what it has: as it was flushed last.
func TestHolderFollows(t *testing.T) {
	v, err := Open(smallSegments(create(t), nil))
	must(t, err)
	dir, want := t.TempDir(), make([]byte, testSize)
	var at content.Position
	for i := range 60 {
		p := bytes.Repeat([]byte{byte(i + 1)}, (1+i%3)*extents.Unit)
		off := int64(i%20) * extents.Unit
		must(t, v.WriteAt(t.Context(), p, off, false))
		copy(want[off:], p)
		if i%7 == 6 {
			must(t, v.Flush(t.Context()))
			at = follow(t, v, dir, at)
		}
	}
	must(t, v.Flush(t.Context()))
	v.work.Wait() // what is compacted is synced too
	at = follow(t, v, dir, at)
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false)) // never flushed
	if again := follow(t, v, dir, at); again != at {
		t.Errorf("%v is durable without a flush", again)
	}
	other := t.TempDir()
	must(t, os.RemoveAll(other))
	must(t, Create(other, testID()))
	var all []journal.AdoptedSegment
	for _, path := range segments(t, dir) {
		f, err := os.Open(path)
		must(t, err)
		info, err := f.Stat()
		must(t, err)
		h, seq, end, err := journal.Inspect(f, info.Size())
		must(t, errors.Join(err, f.Close()))
		if end != info.Size() {
			t.Fatalf("%s has %d whole bytes of %d", path, end, info.Size())
		}
		ref := content.SegmentRef{Volume: h.Volume, Epoch: h.Epoch, After: h.After, Through: content.Position{Number: h.Number, Seq: seq}, Bytes: end}
		all = append(all, journal.AdoptedSegment{Ref: ref, Path: path})
	}
	must(t, journal.Adopt(other, testID(), all, func(string) {}))
	taken, err := Open(smallSegments(other, nil))
	must(t, err)
	expect(t, taken, want, 0, testSize)
	must(t, taken.Close())

	p, err := v.Seal(t.Context())
	must(t, err)
	must(t, v.Rebase(flat(want), testSize, testChunk, p))
	if _, _, err := v.ReadSegments(io.Discard, at, 1<<20); !errors.Is(err, content.ErrNotFound) && p != at {
		t.Errorf("of a journal that was cut: %v", err)
	}
	must(t, v.Close())
}

// TestAdoptRefuses what is not what the record says.
func TestAdoptRefuses(t *testing.T) {
	v, err := Open(smallSegments(create(t), nil))
	must(t, err)
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false))
	through, err := v.Seal(t.Context())
	must(t, err)
	var b bytes.Buffer
	ref, err := v.Merge(t.Context(), &b, content.Position{}, through)
	must(t, err)
	for name, change := range map[string]func(*journal.AdoptedSegment){
		"sum":     func(s *journal.AdoptedSegment) { s.Ref.Sum[3] ^= 1 },
		"length":  func(s *journal.AdoptedSegment) { s.Ref.Bytes++ },
		"number":  func(s *journal.AdoptedSegment) { s.Ref.Through.Number++ },
		"after":   func(s *journal.AdoptedSegment) { s.Ref.After.Seq++ },
		"volume":  func(s *journal.AdoptedSegment) { s.Ref.Volume[0]++ },
		"nothing": func(s *journal.AdoptedSegment) {},
	} {
		dir := filepath.Join(t.TempDir(), "v")
		must(t, Create(dir, testID()))
		s := journal.AdoptedSegment{Ref: ref, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }}
		change(&s)
		err := journal.Adopt(dir, testID(), []journal.AdoptedSegment{s}, func(string) {})
		if name == "nothing" {
			must(t, err)
			continue
		}
		if !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	must(t, v.Close())
}

// TestAdoptBesideCompaction has the parent's journal made smaller once the first segment is there.
func TestAdoptBesideCompaction(t *testing.T) {
	v := open(t, create(t), nil)
	v.tended.Store(true) // what tends is called here
	for i := range 2 * smallMax {
		sealed(t, v, i)
	}
	must(t, v.Keep(v.End()))
	dir := filepath.Join(t.TempDir(), "v")
	must(t, Create(dir, testID()))
	must(t, journal.Adopt(dir, testID(), v.Sealed(), func(step string) {
		if step != "adopted" {
			return
		}
		if v.tend(); len(v.chain) > 2 {
			t.Errorf("%d segments: nothing was compacted", len(v.chain))
		}
	}))
	must(t, v.Close())
	fork := open(t, dir, nil)
	expectSealed(t, fork, 2*smallMax)
	must(t, fork.Close())
}

// far is another place, that counts, and fails while it is to.
type far struct {
	calls atomic.Int32
	fails atomic.Bool
	upTo  atomic.Uint64
}

func (f *far) Persist(_ context.Context, upTo content.Position) error {
	f.calls.Add(1)
	if f.fails.Load() {
		return content.ErrUnavailable
	}
	f.upTo.Store(upTo.Seq)
	return nil
}

// TestFlushAsksWhereElse: a flush is acknowledged when what it covers is durable there
// too, fails as that does, and shares its calls.
func TestFlushAsksWhereElse(t *testing.T) {
	f := new(far)
	cfg := config(create(t))
	cfg.Persist = f.Persist
	v, err := Open(cfg)
	must(t, err)
	f.fails.Store(true)
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false))
	if err := v.Flush(t.Context()); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("flush: %v", err)
	}
	f.fails.Store(false)
	must(t, v.Flush(t.Context()))
	if f.upTo.Load() == 0 {
		t.Error("a flush was acknowledged that nobody else has")
	}
	calls := f.calls.Load()
	must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), 0, false))
	v.persisting.Lock()
	var group errgroup.Group
	for range 16 {
		group.Go(func() error { return v.Flush(context.Background()) })
	}
	v.persisting.Unlock()
	must(t, group.Wait())
	if more := f.calls.Load() - calls; more != 1 {
		t.Errorf("16 flushes of one write made %d calls", more)
	}
	v.Distrust()
	f.fails.Store(true)
	if err := v.Flush(t.Context()); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("another place has not what was flushed before, and says so: %v", err)
	}
	f.fails.Store(false)
	must(t, v.Close())
}

// TestGrow: what is new reads as zeros, and can be written.
func TestGrow(t *testing.T) {
	v := open(t, create(t), newImage(sourceSize))
	must(t, v.Grow(2*testSize))
	p := bytes.Repeat([]byte{1}, extents.Unit)
	if must(t, v.ReadAt(t.Context(), p, 2*testSize-extents.Unit)); v.Geometry().Size != 2*testSize || !bytes.Equal(p, make([]byte, extents.Unit)) {
		t.Errorf("%+v, %x", v.Geometry(), p[:4])
	}
	if err := v.Grow(testSize); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("smaller: %v", err)
	}
	must(t, v.Close())
}
