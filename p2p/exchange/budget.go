package exchange

import (
	"time"

	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

// What one peer may have open here at once. One over that is told that we are
// busy; the number of our own Wants stays below it, see session.places.
const (
	// wantsMax is how many Wants of a member wait here, guests' and others apart:
	// each costs a goroutine and, while it reads, a chunk of memory.
	wantsMax = 256
	// indexesMax is how many objects they may be for: 4 GiB of chunks, asked in advance.
	indexesMax = 32 << 10
	// smallMax is how many calls, introductions and subscriptions of a member are open,
	// several an image; bodiesMax is how many bytes they may bring, four of the largest.
	smallMax  = 128
	bodiesMax = 4 * (wire.CallSizeMax + wire.MethodMax)
	// streamsMax is how many streams a peer may have: its lanes, and as many ending.
	streamsMax = 8
	// introductions is how many records of a member are checked a second, each for
	// some hundred microseconds, after a burst of one for each image of a large farm.
	introductions      = 100
	introductionsBurst = 512

	// A stranger reads public content, when nobody else waits, and may redeem an invite.
	strangerWantsMax   = 16
	strangerIndexesMax = 512
	strangerSmallMax   = 4
	// strangerFrameMax bounds one of its frames, in bytes: an invite, or a large Want.
	strangerFrameMax = 64 << 10
	// strangersMax is how many of them are served at all.
	strangersMax = 128
	// strangerFrames is how many frames of one are read a second: a reader of public
	// content asks for a run at a time, of which a fast link carries fewer.
	strangerFrames      = 64
	strangerFramesBurst = 128
	// strangersRate is what all strangers together are sent, in bytes a second, so that
	// members have nearly all of any link; a burst is four of the largest objects.
	strangersRate  = 16 << 20
	strangersBurst = 4 * (wire.BodySizeMax + wire.PageSizeMax)
	// strangerIdle is how long one that wants nothing keeps its streams: between two
	// reads of something that runs from what it reads.
	strangerIdle = 30 * time.Second
)

// budget is what one peer has open, or may.
type budget struct {
	wants   [link.Classes]int
	indexes int
	small   int
	calls   int // of the small ones
	bytes   int // of the bodies of the small ones
}

// limitOf is what a peer may have open.
func limitOf(stranger bool) budget {
	if stranger {
		return budget{[link.Classes]int{strangerWantsMax, strangerWantsMax}, strangerIndexesMax, strangerSmallMax, strangerSmallMax, strangerSmallMax * strangerFrameMax}
	}
	return budget{[link.Classes]int{wantsMax, wantsMax}, indexesMax, smallMax, smallMax, bodiesMax}
}

// costOf returns what a request has open.
func costOf(m wire.Message, c link.Class) (b budget) {
	switch m := m.(type) {
	case wire.Want:
		b.wants[c], b.indexes = 1, len(m.Indexes)
	case wire.Call:
		b.small, b.calls, b.bytes = 1, 1, len(m.Body)
	case wire.Introduce:
		b.small, b.bytes = 1, len(m.Envelope)
	default:
		b.small = 1
	}
	return b
}

// plus returns the sum of b and n times c.
func (b budget) plus(c budget, n int) budget {
	for i := range b.wants {
		b.wants[i] += n * c.wants[i]
	}
	b.indexes += n * c.indexes
	b.small += n * c.small
	b.calls += n * c.calls
	b.bytes += n * c.bytes
	return b
}

func (b budget) within(limit budget) bool {
	return b.wants[link.Bulk] <= limit.wants[link.Bulk] && b.wants[link.Guest] <= limit.wants[link.Guest] &&
		b.indexes <= limit.indexes && b.small <= limit.small && b.calls <= limit.calls && b.bytes <= limit.bytes
}
