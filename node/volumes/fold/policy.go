package fold

import (
	"math/bits"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// AfterBytes of a journal go to the bucket whatever the time: what a takeover
	// of a lost node may miss, and what a merge needs of the disk beside it.
	AfterBytes = 256 << 20
	// AfterTime is how old the oldest change gets that no record names, and Spread what is
	// added to it, another part for each volume, so that those that are written together
	// don't come together. A fold costs a segment, a record and in the end a deletion: with
	// 1,000 volumes 3,000 requests in 16.5 minutes.
	AfterTime = 15 * time.Minute
	Spread    = 3 * time.Minute

	// retryMin and retryMax bound the wait after a fold that failed, which doubles.
	retryMin = 5 * time.Second
	retryMax = 5 * time.Minute

	// mergeMin is how many segments of like size are merged, at least: fewer would send the
	// same bytes again and again. mergeMax bounds their bytes, and so what is read by who
	// takes a volume over to have its last change.
	mergeMin = 8
	mergeMax = 2 << 30
	// classBits is by how much sizes differ that are not alike: 16 times.
	classBits = 4
)

const (
	// paceTime is in what time all volumes of a node may be folded: they are due each 16.5
	// minutes, by AfterTime and Spread, and by chance many in one. paceMin is how many a
	// second may be, however few there are.
	paceTime = 16 * time.Minute
	paceMin  = 1.0 / 3
	// paceBurst is for how long it is saved up: as long as it is between two looks.
	paceBurst = 5 * time.Second
	// removeMax is how many segments a fold deletes that no record names, where others follow
	// it: with those 64 that go at once a minute would have twice the requests of another.
	removeMax = 1
)

// Pace spreads the folds of a node that are due for their time alone. The zero Pace is ready
// for use.
type Pace struct {
	last time.Time
	left float64
}

// Begin says what time it is, and how many volumes there are.
func (p *Pace) Begin(volumes int, now time.Time) {
	each := max(float64(volumes)/paceTime.Seconds(), paceMin)
	most := 1 + each*paceBurst.Seconds()
	if p.left += each * now.Sub(p.last).Seconds(); p.last.IsZero() || p.left > most {
		p.left = most
	}
	p.last = now
}

// Take reports whether another one may begin.
func (p *Pace) Take() bool {
	if p.left < 1 {
		return false
	}
	p.left--
	return true
}

// Want says what a fold is asked for.
type Want int

const (
	// Safe: the record names all that was written, as is the cheapest.
	Safe Want = iota
	// Chunks: all is in the root, no segments are left.
	Chunks
)

// Clock says when a volume is to be folded. The zero Clock is of one that has just been
// attached. It is pure: its owner says what time it is, and calls it in turn.
type Clock struct {
	begun  bool
	folds  int
	since  time.Time // when it was first seen that something is behind the record
	failed time.Time
	wait   time.Duration // after that
}

// Due reports whether a volume of that ID is to be folded, of whose journal the record
// lacks so many bytes.
func (c *Clock) Due(id content.VolumeID, behind int64, now time.Time) bool {
	if behind == 0 && c.wait == 0 { // what failed is tried again: it may have gone half its way
		c.since = time.Time{}
		return false
	}
	if c.since.IsZero() {
		c.since = now
		if !c.begun { // those of a node begin together, and are spread over the whole time
			c.begun, c.since = true, now.Add(-AfterTime*c.share(id)/shares)
		}
	}
	if now.Sub(c.failed) < c.wait+c.wait*c.share(id)/shares {
		return false
	}
	return c.presses(behind) || now.Sub(c.since) >= AfterTime+Spread*c.share(id)/shares
}

// presses reports whether a fold that is due is so for more than its time.
func (c *Clock) presses(behind int64) bool { return c.wait > 0 || behind >= AfterBytes }

// Folded notes how a fold ended that began at a time.
func (c *Clock) Folded(begun, now time.Time, err error) {
	c.folds++
	if err == nil {
		c.since, c.wait = begun, 0
		return
	}
	c.failed, c.wait = now, min(max(2*c.wait, retryMin), retryMax)
}

// share is a part of shares, another one each time, of the volume's own: its ID is random.
func (c *Clock) share(id content.VolumeID) time.Duration {
	return time.Duration(id[c.folds%len(id)])
}

const shares = 256

// stands is how a journal stands when it is to be folded.
type stands struct {
	segments []content.SegmentRef // that the record names
	behind   int64                // bytes that it does not name yet
	run      content.SegmentRef   // the tails that have those, zero where there are none
	touched  int64                // bytes of the chunks that any of it is in
	want     Want
}

// plan is what is done: chunks, or a segment in place of those of the record from index
// from on, which has what is behind them too where there is no run, else that run follows.
type plan struct {
	chunks bool
	from   int
	run    content.SegmentRef
}

// choose decides. To make chunks costs the whole of each that was touched: it pays when
// that is not more than is yet to be sent, and three quarters of what was, as segments and as
// tails: a byte that was written is sent twice at most, with all that is beside it. Tails cost
// nothing more. A record that is full, or names many tails, has its last segments merged, as
// long as that costs less.
func choose(s stands) plan {
	sent, costs, many := bytesOf(s.segments), s.behind, tailsIn(s.segments)+s.run.Tails > tailsMax
	if s.run.Tails > tailsMax {
		s.run = content.SegmentRef{}
	}
	if s.run.Tails > 0 {
		sent, costs = sent+s.behind, 0
	}
	if s.want == Chunks || s.touched <= costs+sent/4*3 {
		return plan{chunks: true}
	}
	p := plan{from: len(s.segments), run: s.run}
	if i := slices.IndexFunc(s.segments, func(r content.SegmentRef) bool { return r.Tails > 0 }); many && i >= 0 {
		p.from = i
	}
	full := len(s.segments) == catalog.SegmentsMax
	if full {
		p.from = min(p.from, mergeFrom(s.segments))
	}
	merged := s.segments[p.from:]
	p.chunks = full && len(merged) == 0 || len(merged) > 0 && s.touched <= bytesOf(merged)+costs
	return p
}

func tailsIn(segments []content.SegmentRef) (total int) {
	for _, s := range segments {
		total += s.Tails
	}
	return total
}

// mergeFrom returns where those segments at the end begin that are merged: of the smallest
// class of which there are enough, with the smaller ones behind. So a byte is sent once for
// each class. It is the end where that would be too much.
func mergeFrom(segments []content.SegmentRef) (from int) {
	for class := 0; class*classBits < 64; class++ {
		from, total := len(segments), int64(0)
		for from > 0 && bits.Len64(uint64(segments[from-1].Bytes))/classBits <= class && total+segments[from-1].Bytes <= mergeMax {
			from--
			total += segments[from].Bytes
		}
		if len(segments)-from >= mergeMin {
			return from
		}
	}
	return len(segments)
}

func bytesOf(segments []content.SegmentRef) (total int64) {
	for _, s := range segments {
		total += s.Bytes
	}
	return total
}
