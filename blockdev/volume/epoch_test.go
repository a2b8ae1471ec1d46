package volume

import (
	"bytes"
	"os"
	"testing"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// emptyTail writes and flushes, and then leaves an open segment without an entry, as a
// write does that finds the disk full.
func emptyTail(t *testing.T, v *Volume, p []byte) {
	t.Helper()
	must(t, v.WriteAt(t.Context(), p, 0, true))
	at, err := v.Seal(t.Context())
	must(t, err)
	v.Release(at)
	v.take()
	must(t, v.roll())
	v.turns.pass()
	if v.tail == nil || !v.tail.empty() {
		t.Fatal("there is no open segment without an entry")
	}
	at, err = v.Seal(t.Context()) // which has the note speak of that segment
	must(t, err)
	v.Release(at)
}

// TestAnEpochBeginsASegment has a volume enter an epoch, or a start do that, while a segment
// of the old one is open that has no entry yet: what is written then is of the new one. A
// loss of power may take that, and nothing else.
func TestAnEpochBeginsASegment(t *testing.T) {
	for _, started := range []bool{false, true} {
		cfg := smallSegments(create(t), nil)
		v, err := Open(cfg)
		must(t, err)
		want := make([]byte, testSize)
		copy(want, bytes.Repeat([]byte{1}, extents.Unit))
		emptyTail(t, v, want[:extents.Unit])
		if cfg.Epoch = 2; started {
			cfg.Dir = killed(t, cfg.Dir)
			must(t, v.Close())
			v, err = Open(cfg)
			must(t, err)
		} else {
			v.Enter(2)
		}
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, extents.Unit), extents.Unit, false))
		path := v.path(v.tail)
		lost := killed(t, cfg.Dir)
		must(t, v.Flush(t.Context()))
		must(t, v.Close())

		for _, path := range segments(t, cfg.Dir) {
			b, err := os.ReadFile(path)
			must(t, err)
			h, err := journal.DecodeHeader(b)
			if must(t, err); (h.Epoch == 2) != (h.Number == 2) {
				t.Errorf("segment %d is of epoch %d", h.Number, h.Epoch)
			}
		}
		copy(want[extents.Unit:], bytes.Repeat([]byte{2}, extents.Unit))
		v, err = Open(cfg)
		must(t, err)
		expect(t, v, want, 0, testSize)
		must(t, v.Close())

		torn := killed(t, lost)
		must(t, os.Truncate(torn+path[len(cfg.Dir):], 0))
		cfg.Dir = torn
		clear(want[extents.Unit:])
		v, err = Open(cfg)
		if err != nil {
			t.Errorf("a start %v: what was never flushed is torn: %v", started, err)
			continue
		}
		expect(t, v, want, 0, testSize)
		must(t, v.Close())
	}
}
