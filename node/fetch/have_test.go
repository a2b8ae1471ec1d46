package fetch

import (
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// TestScanKeepsWhatLandsMeanwhile: a scan has passed the place of a chunk that lands
// before its end.
func TestScanKeepsWhatLandsMeanwhile(t *testing.T) {
	rs := new(rootState)
	rs.noteHave(1) // evicted before the scan
	rs.have.landed = new(content.Bitmap)
	rs.noteHave(5)
	var set content.Bitmap
	set.Add(3)
	rs.have.found(&set)
	if got := slices.Collect(rs.have.set.All); !slices.Equal(got, []uint64{3, 5}) {
		t.Errorf("here are %v, want 3 and 5", got)
	}
}

// TestScansShareTheirTime: all roots together take one part in rescanShare.
func TestScansShareTheirTime(t *testing.T) {
	var p pace
	now := time.Now()
	for range 2 {
		if !p.due(now) {
			t.Error("a scan must wait although none was made lately")
		}
		p.spent(now, time.Second)
		p.spent(now, time.Second)
		if p.due(now.Add(2*rescanShare*time.Second - 1)) {
			t.Error("the next scan comes too soon")
		}
		now = now.Add(2 * rescanShare * time.Second)
	}
}

// TestRootsLongUnusedAreForgotten makes room without losing what is in use.
func TestRootsLongUnusedAreForgotten(t *testing.T) {
	begun := time.Now()
	now := begun
	f := &Fetcher{cfg: Config{Now: func() time.Time { return now }}, roots: map[content.CID]*rootState{}}
	var ids []content.CID
	for i := range 2 * rootsForgotten {
		id := content.Sum([]byte{byte(i)})
		ids = append(ids, id)
		f.roots[id] = &rootState{id: id, used: begun.Add(time.Duration(i) * time.Second)}
	}
	now = begun.Add(time.Hour)
	f.root(ids[0])
	f.forgetRoots()
	for i, id := range ids {
		if known := f.roots[id] != nil; known == (i == 1 || i == 2) {
			t.Errorf("root %d: known is %t", i, known)
		}
	}
}
