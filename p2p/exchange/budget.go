package exchange

// What one peer may have open here at once. One over that is told that we are
// busy; the number of our own Wants stays below it, see session.places.
const (
	// wantsMax is how many Wants of a member wait here, guests' and others apart:
	// each costs a goroutine and, while it reads, a chunk of memory.
	wantsMax = 256
	// indexesMax is how many objects they may be for: 4 GiB of chunks, more than
	// any link should be asked for in advance.
	indexesMax = 32 << 10
	// smallMax is how many calls, introductions and subscriptions of a member are
	// open, several for each image that it works with.
	smallMax = 128
	// streamsMax is how many streams a peer may have: its lanes, and as many whose
	// end was not noticed yet.
	streamsMax = 8

	// A stranger reads public content, when nobody else waits, and may redeem an
	// invite.
	strangerWantsMax   = 16
	strangerIndexesMax = 512
	strangerSmallMax   = 4
	// strangerFrameMax bounds what one of its frames makes us set aside, in bytes:
	// an invite, or a Want of many ranges.
	strangerFrameMax = 64 << 10
	// strangersMax is how many of them are served at all.
	strangersMax = 128
)

// budget is what one peer may still open.
type budget struct {
	wants   [classes]int
	indexes int
	small   int
}

func memberBudget() budget {
	return budget{[classes]int{wantsMax, wantsMax}, indexesMax, smallMax}
}

func strangerBudget() budget {
	return budget{[classes]int{strangerWantsMax, strangerWantsMax}, strangerIndexesMax, strangerSmallMax}
}

// want takes one Want of n indexes, if there is room.
func (b *budget) want(c class, n int) bool {
	if b.wants[c] < 1 || b.indexes < n {
		return false
	}
	b.wants[c]--
	b.indexes -= n
	return true
}

func (b *budget) wanted(c class, n int) {
	b.wants[c]++
	b.indexes += n
}

// call takes one small request, if there is room.
func (b *budget) call() bool {
	if b.small < 1 {
		return false
	}
	b.small--
	return true
}

func (b *budget) called() { b.small++ }
