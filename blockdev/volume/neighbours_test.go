package volume

import (
	"bytes"
	"maps"
	"os"
	"testing"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// killed is a folder as a kill leaves it.
func killed(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir() + "/v"
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// TestASegmentWithoutATableIsBetween has a kill and the next epoch leave a segment without a
// table between others, which compaction then rewrites: nothing of it is lost by the next start.
func TestASegmentWithoutATableIsBetween(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	want := make([]byte, testSize)
	write := func(v *Volume, unit int64, b byte) {
		p := bytes.Repeat([]byte{b}, extents.Unit)
		must(t, v.WriteAt(t.Context(), p, unit*extents.Unit, true))
		copy(want[unit*extents.Unit:], p)
	}
	again := func(v *Volume) *Volume {
		v.work.Wait()
		cfg.Dir, cfg.Epoch = killed(t, cfg.Dir), cfg.Epoch+1
		must(t, v.Close())
		v, err := Open(cfg)
		must(t, err)
		return v
	}
	v, err := Open(cfg)
	must(t, err)
	for i := range int64(12) { // more than one segment
		write(v, i%4, byte(i+1))
	}
	v = again(v)
	write(v, 20, 20) // in a segment of its own, without a table
	v = again(v)
	for i := range int64(24) {
		write(v, i%4, byte(i+50))
	}
	v = again(v)
	must(t, v.absorb())
	must(t, v.joinLayers())
	for range 3 {
		if _, err := v.compact(); err != nil {
			t.Fatal(err)
		}
	}
	v = again(v)
	expect(t, v, want, 0, testSize)
	must(t, v.Close())
}

// TestNothingDiesOfWhatIsNotSynced compacts while a Seal has frozen what it has not synced
// yet, and then loses power: what was flushed is there.
func TestNothingDiesOfWhatIsNotSynced(t *testing.T) {
	cfg := smallSegments(create(t), nil)
	v, err := Open(cfg)
	must(t, err)
	want := make([]byte, testSize)
	for i := range int64(16) {
		p := bytes.Repeat([]byte{byte(i + 1)}, extents.Unit)
		must(t, v.WriteAt(t.Context(), p, i*extents.Unit, true))
		copy(want[i*extents.Unit:], p)
	}
	v.work.Wait()
	synced := v.notes.Last
	before := files(t, cfg.Dir)
	for i := range int64(16) {
		must(t, v.WriteAt(t.Context(), make([]byte, extents.Unit), i*extents.Unit, false))
	}
	v.work.Wait()
	after := ""
	v.cfg.Step = func(name string) {
		if name != "ended" {
			return
		}
		v.cfg.Step = func(string) {}
		v.tending.Lock()
		defer v.tending.Unlock()
		if _, err := v.compact(); err != nil {
			t.Error(err)
		}
		all := files(t, cfg.Dir)
		for name, b := range all { // what came since the last sync is lost, but for what has been merged
			if h, err := journal.DecodeHeader([]byte(b)); err == nil && h.Number >= synced.Number && h.Merged == 0 {
				if delete(all, name); before[name] != "" {
					all[name] = before[name]
				}
			}
		}
		after = t.TempDir() + "/v"
		must(t, os.Mkdir(after, 0o700))
		put(t, after, maps.Clone(all))
	}
	_, err = v.Seal(t.Context())
	must(t, err)
	must(t, v.Close())
	cfg.Dir = after
	v, err = Open(cfg)
	must(t, err)
	expect(t, v, want, 0, testSize)
	must(t, v.Close())
}
