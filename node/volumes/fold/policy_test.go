package fold

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// entrySize is what 4 KiB take in a journal, with head and sum, and tailBeside what a tail
// has beside those.
const (
	entrySize  = block + 44
	tailBeside = catalog.TailHeader + 160
)

// books count what a volume costs that is written at random, by the decisions of a fold.
type books struct {
	stands
	pending       []uint32 // by block: in which segment, from 1, it was last counted
	touchedIn     []uint32 // by chunk: behind which base
	now, base     uint32
	guest, bucket int64
	requests      int
}

func newBooks(disk int64) *books {
	return &books{pending: make([]uint32, disk/block), touchedIn: make([]uint32, disk/content.ChunkSizeDefault), now: 1, base: 1}
}

func (b *books) write(at uint64) {
	if b.pending[at] != b.now {
		b.pending[at] = b.now
		b.behind += entrySize
	}
	if chunk := at * block / content.ChunkSizeDefault; b.touchedIn[chunk] != b.base {
		b.touchedIn[chunk] = b.base
		b.touched += content.ChunkSizeDefault
	}
	b.guest += block
}

// flush puts a tail of what so many writes have brought.
func (b *books) flush(writes int) {
	b.run.Tails++
	b.run.Bytes += int64(writes)*entrySize + tailBeside
	b.bucket += int64(writes)*entrySize + tailBeside
}

func (b *books) fold() {
	if b.behind == 0 {
		return
	}
	p := choose(b.stands)
	b.requests += 2
	if p.chunks {
		b.bucket += b.touched
		b.requests += 2 + len(b.segments) // two lists; the map's nodes are in the cache
		b.segments, b.touched = nil, 0
		b.base++
	} else {
		merged := bytesOf(b.segments[p.from:])
		if p.run.Tails == 0 {
			merged += b.behind
		}
		b.bucket += merged
		b.requests += len(b.segments) - p.from
		if b.segments = b.segments[:p.from:p.from]; merged > 0 {
			b.segments = append(b.segments, content.SegmentRef{Bytes: merged})
		}
		if p.run.Tails > 0 {
			b.segments = append(b.segments, p.run)
		}
	}
	b.behind, b.run = 0, content.SegmentRef{}
	b.now++
}

// TestBytesOfRandomWrites: over an hour of random writes of 4 KiB the bucket is sent at
// most twice what the guest wrote, at any speed. The clock is compressed: what is counted
// is what the decisions of a fold say, with the real sizes. Flushes are of the policy
// origin: under local they send nothing.
func TestBytesOfRandomWrites(t *testing.T) {
	for _, tt := range []struct {
		name   string
		disk   int64
		second int // writes
		flush  int // after so many, 0 never
	}{
		{"20 a second to 10 GiB", 10 << 30, 20, 0}, {"500 a second to 10 GiB", 10 << 30, 500, 0}, {"500 a second to 1 GiB", 1 << 30, 500, 0},
		{"700 a second to 100 GiB", 100 << 30, 700, 0}, {"1 a second to 100 GiB", 100 << 30, 1, 0},
		{"1 a second to 100 GiB, each flushed", 100 << 30, 1, 1}, {"4 a second to 100 GiB, each flushed", 100 << 30, 4, 1},
		{"20 a second to 10 GiB, flushed each 8", 10 << 30, 20, 8}, {"500 a second to 1 GiB, flushed each 200", 1 << 30, 500, 200},
		{"1 a second to 1 GiB, flushed each 5", 1 << 30, 1, 5}, {"700 a second to 100 GiB, flushed each 64", 100 << 30, 700, 64},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBooks(tt.disk)
			random := rand.New(rand.NewPCG(1, 2))
			var clock Clock
			writes := 0
			now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
			for range 3600 {
				for range tt.second {
					b.write(random.Uint64N(uint64(tt.disk / block)))
					if writes++; tt.flush > 0 && writes%tt.flush == 0 {
						b.flush(tt.flush)
					}
				}
				now = now.Add(time.Second)
				if clock.Due(content.VolumeID{90}, b.behind, now) {
					b.fold()
					clock.Folded(now, now, nil)
				}
			}
			if tt.flush == 0 {
				b.fold() // else it is there
			}
			ratio := float64(b.bucket) / float64(b.guest)
			t.Logf("%d MiB written, %.2f times that sent, %d segments left, %d requests", b.guest>>20, ratio, len(b.segments), b.requests)
			if ratio > 2 {
				t.Errorf("%.2f", ratio)
			}
		})
	}
}

// TestAFullRecordIsMergedCheaply: 1,600 segments one after the other are sent three times
// at most, and the record never has more than it may.
func TestAFullRecordIsMergedCheaply(t *testing.T) {
	var s stands
	s.touched = 1 << 60 // chunks never pay
	var sent, written int64
	for range 1600 {
		s.behind = 1 << 20
		p := choose(s)
		if p.chunks {
			t.Fatal("chunks were made")
		}
		merged := bytesOf(s.segments[p.from:]) + s.behind
		s.segments = append(s.segments[:p.from:p.from], content.SegmentRef{Bytes: merged})
		written, sent = written+s.behind, sent+merged
		if len(s.segments) > catalog.SegmentsMax {
			t.Fatalf("%d segments", len(s.segments))
		}
	}
	t.Logf("%.2f times what was written was sent", float64(sent)/float64(written))
	if sent > 3*written {
		t.Errorf("%d of %d", sent, written)
	}
}

// TestRequestsOfAThousandVolumes that are written all the time: in no minute of two hours more
// than 200, counted with the deletions of segments. Of those that fill a record with segments,
// which are folded into chunks when that is full; and of those of which each fold is chunks,
// where those that are due at one look share a pack, but for the first.
func TestRequestsOfAThousandVolumes(t *testing.T) {
	for _, chunks := range []bool{false, true} {
		average, worst, latest := requestsOf(1000, chunks)
		t.Logf("chunks %t: %d a minute, %d at most, folded within %v", chunks, average, worst, latest)
		if worst > 200 || latest > AfterTime+3*Spread {
			t.Errorf("chunks %t: %d requests a minute, %v", chunks, worst, latest)
		}
	}
}

func requestsOf(volumes int, chunks bool) (average, worst int, latest time.Duration) {
	random := rand.New(rand.NewPCG(3, 4))
	clocks, segments, garbage, ids := make([]Clock, volumes), make([]int, volumes), make([]int, volumes), make([]content.VolumeID, volumes)
	start := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	last := make([]time.Time, volumes)
	for i := range ids {
		for j := range ids[i] {
			ids[i][j] = byte(random.Uint32())
		}
		segments[i], garbage[i], last[i] = random.IntN(catalog.SegmentsMax), random.IntN(catalog.SegmentsMax), start
	}
	var pace Pace
	total, minute := 0, 0
	const look = 5 // seconds
	for second := 0; second < 2*3600; second += look {
		if second%60 == 0 {
			worst, minute = max(worst, minute), 0
		}
		now := start.Add(time.Duration(second) * time.Second)
		pace.Begin(volumes, now)
		folds := 0
		for _, i := range random.Perm(volumes) { // as they come out of a map
			if !clocks[i].Due(ids[i], 1<<20, now) || !pace.Take() {
				continue
			}
			clocks[i].Folded(now, now, nil)
			latest, last[i] = max(latest, now.Sub(last[i])), now
			minute, total, folds = minute+1, total+1, folds+1 // the record
			if segments[i]++; chunks {
				continue
			}
			minute, total = minute+1, total+1 // a segment, or a pack
			if segments[i] == catalog.SegmentsMax {
				garbage[i], segments[i] = garbage[i]+segments[i], 0
			}
			if n := min(garbage[i], removeMax); n > 0 {
				garbage[i], minute, total = garbage[i]-n, minute+n, total+n
			}
		}
		if chunks {
			minute, total = minute+min(folds, 2), total+min(folds, 2)
		}
	}
	return total / 120, worst, latest
}

// TestWhenAFoldIsDue: by bytes, by time, after failures less and less often; and never for
// who has written nothing.
func TestWhenAFoldIsDue(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var c Clock
		id := content.VolumeID{rapid.Byte().Draw(r, "id")}
		now := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
		if c.Due(id, 0, now) || c.Due(id, 0, now.Add(time.Hour)) {
			r.Fatal("nothing is behind")
		}
		if !c.Due(id, AfterBytes, now) {
			r.Fatal("so much is behind")
		}
		c.Folded(now, now, nil)
		if c.Due(id, 1, now.Add(AfterTime-1)) || !c.Due(id, 1, now.Add(AfterTime+Spread)) {
			r.Fatal("the time")
		}
		for wait := retryMin; wait <= retryMax; wait *= 2 {
			c.Folded(now, now, errors.New("no"))
			if c.Due(id, AfterBytes, now.Add(wait-1)) || !c.Due(id, 1, now.Add(2*wait)) {
				r.Fatalf("after %v", wait)
			}
			now = now.Add(2 * wait)
		}
	})
}
