package have

import (
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// TestScanKeepsWhatLandsMeanwhile: a scan has passed the place of a chunk that lands
// before its end.
func TestScanKeepsWhatLandsMeanwhile(t *testing.T) {
	var s Set
	s.Add(1) // evicted before the scan
	s.Begin()
	s.Add(5)
	var set content.Bitmap
	set.Add(3)
	s.Found(&set)
	if got := slices.Collect(s.set.All); !slices.Equal(got, []uint64{3, 5}) {
		t.Errorf("here are %v, want 3 and 5", got)
	}
}

// TestFollowersAreToldOfAll, of the whole once and then of what has come, also when
// more came than is remembered.
func TestFollowersAreToldOfAll(t *testing.T) {
	var s Set
	s.Add(7)
	var fo Follower
	told := new(content.Bitmap)
	follow := func() {
		t.Helper()
		for {
			b, changed := s.Next(&fo)
			if b == nil {
				if told.Len() != s.Len() {
					t.Errorf("told of %d, here are %d", told.Len(), s.Len())
				}
				s.Tell()
				<-changed
				return
			}
			told.Union(b)
		}
	}
	follow()
	for _, n := range []uint64{1, 10, newsMax, 3 * newsMax} {
		for i := range n {
			s.Add(100 + i)
		}
		follow()
	}
}

// TestScansShareTheirTime: all roots together take one part in paceShare.
func TestScansShareTheirTime(t *testing.T) {
	var p Pace
	now := time.Now()
	for range 2 {
		if !p.Due(now) {
			t.Error("a scan must wait although none was made lately")
		}
		p.Spent(now, time.Second)
		p.Spent(now, time.Second)
		if p.Due(now.Add(2*paceShare*time.Second - 1)) {
			t.Error("the next scan comes too soon")
		}
		now = now.Add(2 * paceShare * time.Second)
	}
}
