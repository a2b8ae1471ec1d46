package volume

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// TestAbsenceIsNoNewness takes files of a journal away, in all mixtures: without any of
// them it is not taken for a younger one, nor without all for one that has not begun, to
// read alone neither.
func TestAbsenceIsNoNewness(t *testing.T) {
	dir, want := rewritten(t)
	whole := files(t, dir)
	names := slices.Sorted(maps.Keys(whole))
	for mixture := range 1 << len(names) {
		left := map[string]string{}
		for i, name := range names {
			if mixture>>i&1 == 1 {
				left[name] = whole[name]
			}
		}
		if put(t, dir, left); len(left) < len(whole) {
			refused(t, "of all files these are left", smallSegments(dir, nil))
		}
	}
	put(t, dir, nil)
	refused(t, "nothing to save", readOnly(smallSegments(dir, nil)))
	put(t, dir, whole)
	v, err := Open(smallSegments(dir, nil))
	must(t, err)
	expect(t, v, want, 0, testSize)
	must(t, v.Close())
}

// TestNewVolumeIsNotRefused kills a process between each two steps of a volume's first
// writes: what was never flushed may be gone, and the volume opens.
func TestNewVolumeIsNotRefused(t *testing.T) {
	dir := create(t)
	steps := []map[string]string{files(t, dir)}
	v := open(t, dir, nil)
	steps = append(steps, files(t, dir))
	must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{1}, extents.Unit), 0, false))
	written := files(t, dir)
	steps = append(steps, written, map[string]string{journal.NoteName: written[journal.NoteName]}) // a loss of power may take the segment
	must(t, v.sync(v.due().segments, true))
	steps = append(steps, files(t, dir))
	must(t, v.Flush(t.Context()))
	steps = append(steps, files(t, dir))
	must(t, v.Close())
	for _, step := range steps {
		put(t, dir, step)
		v := open(t, dir, nil)
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{2}, extents.Unit), 0, true))
		must(t, v.Close())
	}
	if err := Create(dir, testID()); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second one in its place: %v", err)
	}
}

// elsewhere has the seeds of journals that a guest may have a copy of on this disk.
func elsewhere() map[string]uint32 {
	return map[string]uint32{"another volume's": journal.Seed([16]byte{9}, 1), "another segment's": journal.Seed(testID(), 2)}
}

// TestGuestsBytesAreNoEntry has entries of a journal in the data of an entry that a loss of
// power has torn: they are not taken for what came later.
func TestGuestsBytesAreNoEntry(t *testing.T) {
	for whose, foreign := range elsewhere() {
		forged := encoded(journal.Entry{Kind: journal.KindData, Seq: 4, Durable: 3, Start: 0, Sectors: extents.UnitSectors}, foreign, bytes.Repeat([]byte{0xbb}, extents.Unit))
		dir := create(t)
		v := open(t, dir, nil)
		must(t, v.WriteAt(t.Context(), bytes.Repeat([]byte{0xaa}, extents.Unit), 0, true))
		torn := v.chain[0].size
		must(t, v.WriteAt(t.Context(), append(forged, make([]byte, 2*extents.Unit-len(forged))...), 8*extents.Unit, false))
		left := files(t, dir)
		must(t, v.Close())
		b := []byte(left[segmentName(1)])
		clear(b[torn : torn+extents.EntryHeader])
		left[segmentName(1)] = string(b)
		put(t, dir, left)
		v, err := Open(config(dir))
		if err != nil {
			t.Errorf("%s: the torn end is not cut off: %v", whose, err)
			continue
		}
		expect(t, v, append(bytes.Repeat([]byte{0xaa}, extents.Unit), make([]byte, 20*extents.Unit)...), 0, 20*extents.Unit)
		must(t, v.Close())
	}
}

// TestGuestsBytesAreNoTable ends a segment with data that are a table elsewhere.
func TestGuestsBytesAreNoTable(t *testing.T) {
	for whose, foreign := range elsewhere() {
		cfg := config(create(t))
		cfg.SegmentSize = 2 * extents.Unit
		v, err := Open(cfg)
		must(t, err)
		want := bytes.Repeat([]byte{0xaa}, 3*extents.Unit)
		e := journal.Entry{Kind: journal.KindData, Sectors: 3 * extents.UnitSectors}
		claim := journal.Table{Seq: 1, Extents: []extents.Extent{{Start: 8, N: 8}}}.Encode(foreign, journal.HeaderSize+e.Size()-journal.TableHeader-journal.RecordSize-journal.TableFooter)
		copy(want[len(want)-len(claim):], claim)
		must(t, v.WriteAt(t.Context(), want, 0, false))
		must(t, v.Close())
		v, err = Open(cfg)
		must(t, err)
		got := make([]byte, len(want))
		if must(t, v.ReadAt(t.Context(), got, 0)); !bytes.Equal(got, want) {
			t.Errorf("%s is believed", whose)
		}
		must(t, v.Close())
	}
}
