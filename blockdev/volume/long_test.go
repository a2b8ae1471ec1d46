package volume

import (
	"bytes"
	"os"
	"slices"
	"testing"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// sealed writes a unit and seals it, as each flush to the origin does.
func sealed(t *testing.T, v *Volume, i int) {
	t.Helper()
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i)}, extents.Unit), int64(i%8)*extents.Unit, false))
	p, err := v.Seal(t.Context())
	must(t, err)
	v.Release(p)
}

// expectSealed reads what the last of n have written.
func expectSealed(t *testing.T, v *Volume, n int) {
	t.Helper()
	var want []byte
	for i := range 8 {
		want = append(want, bytes.Repeat([]byte{byte(n - 8 + i)}, extents.Unit)...)
	}
	expect(t, v, want, 0, int64(len(want)))
}

// TestALongLifeTakesNoMemory has a volume whose segments come and go: what it holds in memory
// of each goes with it.
func TestALongLifeTakesNoMemory(t *testing.T) {
	v := open(t, create(t), nil)
	for i := range 400 {
		sealed(t, v, i)
		v.work.Wait()
	}
	if n := len(v.slots); n > 4*smallMax {
		t.Errorf("400 segments take %d slots, of %d that are there", n, len(v.chain))
	}
	expectSealed(t, v, 400)
	must(t, v.Close())
}

// TestLayersAreJoinedBesideSeals: who seals all the time does not keep the map and the journal
// from being made smaller.
func TestLayersAreJoinedBesideSeals(t *testing.T) {
	v := open(t, create(t), nil)
	v.tended.Store(true) // what tends is called here
	sealed(t, v, 0)
	sealed(t, v, 1)
	newer, older := v.layers[0], v.layers[1]
	joined, err := v.build(older.after, newer.through, extents.Overlay(newer.from(0), older.from(0)), v.memory(newer, older))
	must(t, err)
	sealed(t, v, 2)
	must(t, v.exchange(joined, newer, older))
	if len(v.layers) != 2 || v.layers[1] != joined {
		t.Errorf("there are %d layers: what was joined is given up for a seal that came meanwhile", len(v.layers))
	}
	must(t, v.Close())
}

// TestSegmentsThatCantBeRemoved: compaction has done its work, and what it wrote is read.
func TestSegmentsThatCantBeRemoved(t *testing.T) {
	v := open(t, create(t), nil)
	v.tended.Store(true) // what tends is called here
	for i := range 2 * smallMax {
		sealed(t, v, i)
	}
	gone := v.path(v.chain[0])
	v.cfg.Step = func(name string) {
		if name == "synced" {
			must(t, os.Remove(gone))
		}
	}
	v.tend()
	if len(v.chain) > 1 {
		t.Fatalf("%d segments", len(v.chain))
	}
	v.work.Wait()
	expectSealed(t, v, 2*smallMax)
	must(t, v.Close())
}

// TestManyDiscardsAreCompacted: segments full of nothing but discards are small, and as many
// of them as fit into one by their bytes have more ranges than that may have. Of one whose
// few entries lie in more parts than that nothing is made.
func TestManyDiscardsAreCompacted(t *testing.T) {
	const each = entriesMax * extents.EntryHeader
	var list []*segment
	live := map[*segment]int64{}
	for i := range uint64(3 * smallMax) {
		s := &segment{Header: journal.Header{Number: i + 1, After: content.Position{Number: i}}, size: each + journal.HeaderSize}
		list, live[s] = append(list, s), each
	}
	torn := list[2*smallMax]
	live[torn] = 2 * journal.MergedMax * extents.EntryHeader
	runs := choose(list, live, segmentMax, 0)
	if len(runs) == 0 {
		t.Error("nothing is compacted")
	}
	for _, r := range runs {
		if ranges := r.live / extents.EntryHeader; ranges > journal.MergedMax || slices.Contains(r.segments, torn) {
			t.Errorf("%d segments of %d ranges become one, which takes %d", len(r.segments), ranges, journal.MergedMax)
		}
	}
}
