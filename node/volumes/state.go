package volumes

import (
	"slices"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/trust"
)

// stamp is under what a node writes a volume: the epoch that it has taken, and the random
// number of the start of the process that took it. No two processes ever have the same.
type stamp struct {
	Epoch       uint64 `json:"epoch"`
	Incarnation uint64 `json:"incarnation"`
}

func stampOf(body catalog.Volume) stamp { return stamp{body.Epoch, body.Incarnation} }

// triedMax bounds the stamps that are kept of commits whose end is not known: one of each
// start.
const triedMax = 16

// stage is how far a node is with its right to a volume.
type stage string

const (
	// idle: it is not served.
	idle stage = ""
	// asking: the record is being read, before anything is served.
	asking stage = "asking"
	// taking: the next epoch is being written to the record. Who was unconfirmed serves
	// meanwhile.
	taking, confirming stage = "taking", "confirming"
	// serving: the record has said that the volume is this node's since it last stood still.
	serving stage = "serving"
	// checking: it has stood still, so another may have it; it acknowledges nothing until
	// the record was read.
	checking stage = "checking"
	// unconfirmed: it is this node's as far as is known here, and the record can't be read.
	// What needs nobody else is acknowledged.
	unconfirmed stage = "unconfirmed"
	// uncommitted: nobody else knows of it; it was made while the origin was away.
	uncommitted stage = "uncommitted"
	// lost: it is another's. What is here stays.
	lost stage = "lost"
)

// state is what a node knows of its right to a volume. It changes by step alone.
type state struct {
	self    trust.PublicKey
	process uint64 // the incarnation of this start

	stage stage
	// here says that this node's disk has what no record tells of: it held the volume when
	// it last knew.
	here bool
	// stamp is the last that the record was known to have from this node, and tried are
	// those of commits since that may have arrived.
	stamp stamp
	tried []stamp
	// wish is what the attach that is under way asks for.
	wish wish
	// seen is the record by which the next epoch is taken.
	seen catalog.Volume
}

// wish is what an attach asks for.
type wish struct {
	takeover   bool
	generation uint64 // 0 asks nothing
}

// event is what happens to a volume's state.
type event interface{ event() }

type (
	// asked: it is to be attached.
	asked struct{ wish }
	// sighted: this is the record, or the name was freed since it was this node's.
	sighted struct {
		body  catalog.Volume
		freed bool
	}
	// unreadable: the record can't be read now.
	unreadable struct{}
	// written: the commit is at the origin.
	written struct{}
	// overtaken: another record is there than the commit was made from.
	overtaken struct{}
	// unwritten: the commit may have arrived, or not.
	unwritten struct{}
	// stoodStill: this process did not run for a while, and the mesh went on without it.
	stoodStill struct{}
	// due: it is time to look at the record.
	due struct{}
	// released: the record says that this node gave it up, or it was closed for now.
	released struct{}
)

func (asked) event()      {}
func (sighted) event()    {}
func (unreadable) event() {}
func (written) event()    {}
func (overtaken) event()  {}
func (unwritten) event()  {}
func (stoodStill) event() {}
func (due) event()        {}
func (released) event()   {}

// deed is what is to be done about a volume.
type deed string

const (
	doRead   deed = "read"   // the record; sighted or unreadable follows
	doKeep   deed = "keep"   // the state on disk, before anything else is done
	doAdopt  deed = "adopt"  // what the record names, in a folder of its own
	doCommit deed = "commit" // the next stamp; written, overtaken or unwritten follows
	doTell   deed = "tell"   // who held it, that it does not any more
	doServe  deed = "serve"  // it, to clients
	doShut   deed = "shut"   // acknowledge nothing
	doOpen   deed = "open"   // acknowledge what the stage allows
	doStop   deed = "stop"   // serving, for good; what is not in the bucket becomes an orphan
	doRefuse deed = "refuse" // the attach: another has it
	doStale  deed = "stale"  // refuse: a later generation was here
	doAway   deed = "away"   // refuse: nobody can tell whose it is
	doGone   deed = "gone"   // refuse: there is no such volume
)

// mayAcknowledge reports whether what was written may be called durable, by this
// volume's policy: alone where nobody but this disk has to have it.
func (s state) mayAcknowledge(alone bool) bool {
	return s.stage == serving || alone && slices.Contains([]stage{unconfirmed, confirming, uncommitted}, s.stage)
}

// isMine reports whether a record is as this node wrote it.
func (s state) isMine(body catalog.Volume) bool {
	return body.Holder == s.self && (stampOf(body) == s.stamp || slices.Contains(s.tried, stampOf(body)))
}

// next is the stamp that is being committed.
func (s state) next() stamp { return s.tried[len(s.tried)-1] }

// step returns what becomes of a state by an event, and what is to be done, in turn. Of
// deeds that are followed by an event there is at most one, the last.
func step(s state, e event) (state, []deed) {
	switch e := e.(type) {
	case asked:
		s.wish, s.stage = e.wish, asking
		return s, []deed{doRead}
	case sighted:
		return s.sighted(e)
	case unreadable:
		return s.unreadable()
	case written:
		return s.written()
	case overtaken:
		if s.stage == confirming {
			s.stage = unconfirmed
		} else if s.stage == taking {
			s.stage = asking
		}
		return s, []deed{doRead}
	case unwritten:
		if s.stage == confirming {
			s.stage = unconfirmed
			return s, nil
		}
		return s.unreadable()
	case stoodStill:
		switch s.stage {
		case serving:
			s.stage = checking
			return s, []deed{doShut, doRead}
		case checking, unconfirmed:
			return s, []deed{doShut, doRead}
		case uncommitted:
			return s, []deed{doOpen}
		}
	case due:
		switch s.stage {
		case serving, checking, unconfirmed:
			return s, []deed{doRead}
		}
	case released:
		s.stage = idle
	}
	return s, nil
}

// sighted goes by what the record says.
func (s state) sighted(e sighted) (state, []deed) {
	mine := !e.freed && s.isMine(e.body)
	switch s.stage {
	case serving, checking, unconfirmed:
		return s.confirmed(e, mine)
	case asking:
	default:
		return s, nil
	}
	switch {
	case e.freed && s.here, !mine && s.here && !s.wish.takeover:
		s.stage = lost
		return s, []deed{doStop}
	case e.freed:
		s.stage = idle
		return s, []deed{doGone}
	case s.wish.generation != 0 && s.wish.generation < e.body.Generation:
		s.stage = idle
		return s, []deed{doStale}
	case !mine && !s.wish.takeover && e.body.State != catalog.Released:
		s.stage = idle
		return s, []deed{doRefuse}
	}
	s.stage = taking
	s = s.take(e.body)
	if mine {
		return s, []deed{doKeep, doCommit}
	}
	return s, []deed{doAdopt, doCommit}
}

// take notes the stamp that is going to be committed over a record. It is tried before
// it is sent: if this process ends before the answer, the next knows it.
func (s state) take(over catalog.Volume) state {
	next, own := stamp{max(over.Epoch, s.stamp.Epoch) + 1, s.process}, slices.Clone(s.tried)
	if slices.Contains(own, stampOf(over)) {
		s.stamp, own = stampOf(over), nil // the others were made from what this one has replaced
	}
	for _, t := range own {
		next.Epoch = max(next.Epoch, t.Epoch+1)
	}
	if i := slices.IndexFunc(own, func(t stamp) bool { return t.Incarnation == s.process && t.Epoch > over.Epoch }); i >= 0 {
		next = own[i] // it is sent again
	}
	own = append(slices.DeleteFunc(own, func(t stamp) bool { return t == next }), next)
	s.seen, s.tried = over, own[max(0, len(own)-triedMax):]
	return s
}

// confirmed goes by what the record says of a volume that is served.
func (s state) confirmed(e sighted, mine bool) (state, []deed) {
	switch {
	case !mine || e.body.State == catalog.Released:
		s.stage = lost
		return s, []deed{doShut, doStop}
	case s.stage == unconfirmed:
		s.stage = confirming
		return s.take(e.body), []deed{doKeep, doOpen, doCommit}
	case s.stage == checking:
		s.stage = serving
		return s, []deed{doOpen}
	}
	return s, nil
}

// unreadable goes on without the record, where this node had the volume.
func (s state) unreadable() (state, []deed) {
	switch {
	case s.stage == checking, s.stage == unconfirmed:
		s.stage = unconfirmed
		return s, []deed{doOpen}
	case (s.stage == asking || s.stage == taking) && s.here && !s.wish.takeover:
		s.stage = unconfirmed
		return s, []deed{doServe}
	case s.stage == asking || s.stage == taking:
		s.stage = idle
		return s, []deed{doAway}
	}
	return s, nil
}

// written has the next stamp.
func (s state) written() (state, []deed) {
	before, mine := s.stage, s.isMine(s.seen)
	s.stamp, s.tried, s.stage, s.here = s.next(), nil, serving, true
	switch {
	case before == confirming:
		return s, []deed{doKeep, doOpen}
	case before == taking && !mine && s.seen.State != catalog.Released:
		return s, []deed{doKeep, doTell, doServe}
	case before == taking:
		return s, []deed{doKeep, doServe}
	}
	return s, nil
}
