package exchange

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange/link"
	"github.com/grangemesh/grange/p2p/wire"
)

// asker is a peer that has streams open to us.
type asker struct {
	id   peer.ID
	link *link.Link
	// frames and introductions bound what a stranger, and a member, may say a second.
	frames, introductions *rate.Limiter
	// bitmap is held while one is encoded and sent, so that it has one in memory.
	bitmap lock

	// mu guards what follows; nothing is locked under it.
	mu       sync.Mutex
	budget   budget
	streams  map[*inbound]bool // true for those that have said hello
	activeAt time.Time         // when it last said something
}

// askers are the peers that have streams open to us.
type askers struct {
	stranger func(peer.ID) bool
	max      int // strangers that are served
	up       *link.Uplink

	mu    sync.Mutex // guards peers; an asker's is taken under it
	peers map[peer.ID]*asker
}

// join counts a new stream of a peer.
func (s *askers) join(id peer.ID, in *inbound) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.peers[id]
	if a == nil {
		a = &asker{
			id: id, link: link.New(s.up), bitmap: newLock(), streams: map[*inbound]bool{}, activeAt: time.Now(),
			frames:        rate.NewLimiter(strangerFrames, strangerFramesBurst),
			introductions: rate.NewLimiter(introductions, introductionsBurst),
		}
		s.peers[id] = a
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.streams) >= streamsMax {
		return fmt.Errorf("%w: peer has %d streams open", content.ErrUnavailable, len(a.streams))
	}
	a.streams[in] = false
	in.asker = a
	return nil
}

// leave counts the end of a stream.
func (s *askers) leave(in *inbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := in.asker
	a.mu.Lock()
	defer a.mu.Unlock()
	if delete(a.streams, in); len(a.streams) == 0 {
		delete(s.peers, a.id)
	}
}

// admit counts a stream that has said hello. When strangers are too many, the one
// silent longest goes, but none with a call open: a newcomer's invite is one.
func (s *askers) admit(in *inbound) error {
	s.mu.Lock()
	a := in.asker
	a.mu.Lock()
	a.streams[in] = true
	a.activeAt = time.Now()
	a.mu.Unlock()
	var strangers int
	var victim *asker
	var since time.Time
	for _, other := range s.peers {
		if hello, at, calls := other.state(); hello && s.stranger(other.id) {
			strangers++
			if other != a && calls == 0 && (victim == nil || at.Before(since)) {
				victim, since = other, at
			}
		}
	}
	s.mu.Unlock()
	switch {
	case strangers <= s.max || !s.stranger(a.id):
		return nil
	case victim == nil:
		return fmt.Errorf("%w: %d strangers are being served", content.ErrUnavailable, s.max)
	}
	victim.drop()
	return nil
}

// state says whether a peer said hello, when it spoke last, and its calls under way.
func (a *asker) state() (hello bool, at time.Time, calls int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, greeted := range a.streams {
		hello = hello || greeted
	}
	return hello, a.activeAt, a.budget[openCalls]
}

// drop ends all streams of a peer.
func (a *asker) drop() {
	a.mu.Lock()
	streams := slices.Collect(maps.Keys(a.streams))
	a.mu.Unlock()
	for _, in := range streams {
		_ = in.stream.Reset()
	}
}

// find returns the asker of that id, nil when it has no stream open.
func (s *askers) find(id peer.ID) *asker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers[id]
}

// sweep ends streams whose frame does not arrive, and those of idle strangers.
func (s *askers) sweep(now time.Time) {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.peers))
	s.mu.Unlock()
	for _, a := range all {
		a.mu.Lock()
		idle := a.budget == budget{} && now.Sub(a.activeAt) > strangerIdle
		var late []*inbound
		for in := range a.streams {
			if in.late(now) {
				late = append(late, in)
			}
		}
		a.mu.Unlock()
		for _, in := range late {
			_ = in.stream.Reset()
		}
		if idle && s.stranger(a.id) {
			a.drop()
		}
	}
}

// peer returns who asks, as it has proved.
func (a *asker) peer(x *Exchange) (p Peer, stranger bool) {
	who, ok := x.ledger.Of(a.id)
	return Peer{a.id, who}, !ok
}

// pace makes a peer wait that says too much. Acknowledgements only answer us.
func (a *asker) pace(ctx context.Context, t wire.Type, stranger bool) (err error) {
	a.mu.Lock()
	a.activeAt = time.Now()
	a.mu.Unlock()
	switch {
	case stranger && t != wire.TypeAck:
		err = a.frames.Wait(ctx)
	case t == wire.TypeIntroduce:
		err = a.introductions.Wait(ctx)
	}
	return err
}

// spend takes what a request costs, if there is room for it.
func (a *asker) spend(cost budget, stranger bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := a.budget.plus(cost, 1)
	if !sum.within(limitOf(stranger)) {
		return false
	}
	a.budget = sum
	return true
}

// refund gives back what spend took.
func (a *asker) refund(cost budget) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.budget = a.budget.plus(cost, -1)
}

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
	// journalMax is how many requests of the journal lane are open, of 64 MiB at most: of
	// 200 volumes that are flushed at once each has one, and it bounds what waits for a disk.
	journalMax = 256
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
type budget [costs]int

// What a budget counts: wants, by the class of link.Class that their data is of, the
// objects that they are for, and small requests, of which some are calls.
const (
	openWants   = 0
	openIndexes = iota + link.Classes - 1
	openSmall
	openCalls
	openBytes // of the small ones
	openJournal
	costs
)

// limitOf is what a peer may have open.
func limitOf(stranger bool) budget {
	if stranger {
		return budget{strangerWantsMax, strangerWantsMax, strangerIndexesMax, strangerSmallMax, strangerSmallMax, strangerSmallMax * strangerFrameMax, 0}
	}
	return budget{wantsMax, wantsMax, indexesMax, smallMax, smallMax, bodiesMax, journalMax}
}

// costOf returns what a request has open.
func costOf(m wire.Message, c link.Class) (b budget) {
	switch m := m.(type) {
	case wire.Want:
		b[openWants+int(c)], b[openIndexes] = 1, len(m.Indexes)
	case wire.Call:
		b[openSmall], b[openCalls], b[openBytes] = 1, 1, len(m.Body)
	case wire.Introduce:
		b[openSmall], b[openBytes] = 1, len(m.Envelope)
	case wire.Promise, wire.Extend, wire.Read, wire.Cut, wire.Drop, wire.Status:
		b[openJournal] = 1
	default:
		b[openSmall] = 1
	}
	return b
}

func (b budget) plus(c budget, n int) budget {
	for i := range b {
		b[i] += n * c[i]
	}
	return b
}

func (b budget) within(limit budget) bool {
	for i := range b {
		if b[i] > limit[i] {
			return false
		}
	}
	return true
}
