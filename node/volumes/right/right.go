// Package right says who may write a volume: a state machine without I/O and without a
// clock, which the node's volumes and their model drive.
package right

import (
	"slices"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/trust"
)

// Stamp is under what a node writes a volume: the epoch that it has taken, and the random
// number of the start of the process that took it. No two processes ever have the same.
type Stamp struct {
	Epoch       uint64 `json:"epoch"`
	Incarnation uint64 `json:"incarnation"`
}

// StampOf is under what a record says that the volume is written.
func StampOf(body catalog.Volume) Stamp { return Stamp{body.Epoch, body.Incarnation} }

// triedMax bounds the stamps that are kept of commits whose end is not known: one of each start.
const triedMax = 16

// Stage is how far a node is with its right to a volume.
type Stage string

// The stages.
const (
	// Idle: it is not served.
	Idle Stage = ""
	// Asking: the record is being read, before anything is served.
	Asking Stage = "asking"
	// Taking: the next epoch is being written to the record. Who was unconfirmed serves meanwhile.
	Taking, Confirming Stage = "taking", "confirming"
	// Doubting: the record may have that epoch by now, or not.
	Doubting Stage = "doubting"
	// Serving: the record has said that the volume is this node's since it last stood still.
	Serving Stage = "serving"
	// Checking: it has stood still, so another may have it; it acknowledges nothing until
	// the record was read.
	Checking Stage = "checking"
	// Unconfirmed: it is this node's as far as is known here, and the record can't be read.
	// What needs nobody else is acknowledged.
	Unconfirmed Stage = "unconfirmed"
	// Uncommitted: nobody else knows of it; it was made while the origin was away.
	Uncommitted Stage = "uncommitted"
	// Lost: it is another's. What is here stays.
	Lost Stage = "lost"
)

// State is what a node knows of its right to a volume. It changes by Step alone.
type State struct {
	Self    trust.PublicKey
	Process uint64 // the incarnation of this start

	Stage Stage
	// Here says that this node's disk has what no record tells of: it held the volume when
	// it last knew.
	Here bool
	// Stamp is the last that the record was known to have from this node, and Tried are
	// those of commits since that may have arrived.
	Stamp Stamp
	Tried []Stamp
	// Vouched says that, since it last stood still, those who hold what is flushed have said
	// that nobody else has come to them.
	Vouched bool
	// Last is the latest epoch of what is on this node's disk, whosever it is by now.
	Last uint64
	// Past is an epoch after which the next one comes: somebody has promised it to who did
	// not take it.
	Past uint64
	Why  string // it is lost, where no record says so
	// Wish is what the attach that is under way asks for.
	Wish Wish
	// Seen is the record by which the next epoch is taken, and From that by which another
	// had the volume, who has to be told.
	Seen, From catalog.Volume
}

// Wish is what an attach asks for.
type Wish struct {
	Takeover   bool
	Generation uint64 // 0 asks nothing
}

// Event is what happens to a volume's state: one of the types below.
type Event any

type (
	// Asked: it is to be attached.
	Asked struct{ Wish }
	// Sighted: this is the record, or the name was freed since it was this node's.
	Sighted struct {
		Body  catalog.Volume
		Freed bool
	}
	// Unreadable: the record can't be read now.
	Unreadable struct{}
	// Written: the commit is at the origin.
	Written struct{}
	// Overtaken: another record is there than the commit was made from.
	Overtaken struct{}
	// Unwritten: the commit may have arrived, or not.
	Unwritten struct{}
	// Unkept: the disk has no room to note what is going to be committed, so it is not.
	Unkept struct{}
	// StoodStill: this process did not run for a while, and the mesh went on without it.
	StoodStill struct{}
	// Vouched: nobody can have taken it over, by what those say who would have to be asked;
	// Unvouched: that is not known, or its policy asks for nobody.
	Vouched   struct{}
	Unvouched struct{}
	// Outdated: others have of it what this disk has not, which is an older copy.
	Outdated struct{ Why string }
	// Due: it is time to look at the record.
	Due struct{}
	// Outbid: the next epoch is to be taken, and to be later than this.
	Outbid struct{ Epoch uint64 }
)

// Deed is what is to be done about a volume.
type Deed string

// The deeds.
const (
	Read        Deed = "read"   // the record; sighted or unreadable follows
	Vouch       Deed = "vouch"  // have the holders asked; vouched or unvouched follows
	Keep        Deed = "keep"   // the state on disk, before anything else is done; unkept may follow, and then nothing else does
	Adopt       Deed = "adopt"  // what the record names, in a folder of its own
	Commit      Deed = "commit" // the next stamp; written, overtaken or unwritten follows
	Tell        Deed = "tell"   // who held it, that it does not any more
	Serve       Deed = "serve"  // it, to clients
	Shut        Deed = "shut"   // acknowledge nothing
	Open        Deed = "open"   // acknowledge what the stage allows
	Stop        Deed = "stop"   // serving, for good; what is not in the bucket becomes an orphan
	Refuse      Deed = "refuse" // the attach: another has it
	RefuseStale Deed = "stale"  // refuse: a later generation was here
	RefuseAway  Deed = "away"   // refuse: nobody can tell whose it is
	RefuseGone  Deed = "gone"   // refuse: there is no such volume
	RefuseFull  Deed = "full"   // refuse: there is no room to take it
)

// MayAcknowledge reports whether what was written may be called durable, by this
// volume's policy: alone where nobody but this disk has to have it.
func (s State) MayAcknowledge(alone bool) bool {
	switch s.Stage {
	case Serving:
		return true
	case Unconfirmed, Confirming:
		return alone || s.Vouched
	case Checking:
		return s.Vouched
	}
	return alone && s.Stage == Uncommitted
}

// IsSure reports whether the last record that was seen is this node's, under the stamp that it has.
func (s State) IsSure() bool { return s.Stage == Serving || s.Stage == Checking }

// IsMine reports whether a record is as this node wrote it.
func (s State) IsMine(body catalog.Volume) bool {
	return body.Holder == s.Self && (StampOf(body) == s.Stamp || slices.Contains(s.Tried, StampOf(body)))
}

// Next is the stamp that is being committed.
func (s State) Next() Stamp { return s.Tried[len(s.Tried)-1] }

// Step returns what becomes of a state by an event, and what is to be done, in turn. Of
// deeds that are followed by an event there is at most one, the last.
func Step(s State, e Event) (State, []Deed) {
	switch e := e.(type) {
	case Asked:
		s.Wish, s.Stage = e.Wish, Asking
		return s, []Deed{Read}
	case Sighted:
		return s.sighted(e)
	case Unreadable:
		return s.unreadable()
	case Written:
		return s.written()
	case Overtaken:
		return s.doubt(), []Deed{Read}
	case Unwritten:
		if s.Stage == Confirming {
			return s.doubt(), nil
		}
		if s.goesOn() {
			return s.unreadable()
		}
		return s.doubt(), []Deed{Read}
	case Unkept:
		return s.unkept()
	case StoodStill:
		if s = s.doubt(); s.Stage == Serving {
			s.Stage = Checking
		}
		s.Vouched = false
		switch s.Stage {
		case Checking, Unconfirmed:
			return s, []Deed{Shut, Vouch}
		case Uncommitted:
			return s, []Deed{Open}
		}
	case Outdated:
		switch s = s.doubt(); s.Stage {
		case Serving, Checking, Unconfirmed, Doubting:
			s.Stage, s.Why = Lost, e.Why
			return s, []Deed{Shut, Stop}
		}
	case Due:
		switch s = s.doubt(); s.Stage { // what an error cut short begins anew
		case Serving:
			return s, []Deed{Read}
		case Checking, Unconfirmed:
			if s.Vouched {
				return s, []Deed{Read}
			}
			return s, []Deed{Vouch}
		}
	case Vouched:
		s.Vouched = true
		return s, []Deed{Open, Read}
	case Unvouched:
		return s, []Deed{Read}
	case Outbid:
		if s.Past = max(s.Past, e.Epoch); s.Stage == Taking {
			return s.take(s.Seen), nil
		}
		return Step(s, Due{})
	}
	return s, nil
}

// sighted goes by what the record says.
func (s State) sighted(e Sighted) (State, []Deed) {
	mine := !e.Freed && s.IsMine(e.Body)
	switch s.Stage {
	case Serving, Checking, Unconfirmed:
		return s.confirmed(e, mine)
	case Doubting:
		if mine && StampOf(e.Body) == s.Next() {
			return s.written()
		}
	case Asking:
	default:
		return s, nil
	}
	// This process has taken it, and has nothing of it: nobody was told that it has.
	again := !mine && !e.Freed && e.Body.Holder == s.Self && e.Body.Incarnation == s.Process && e.Body.Epoch > s.Last
	switch {
	case e.Freed && s.Here, !mine && s.Here && !s.Wish.Takeover && !again:
		s.Stage = Lost
		return s, []Deed{Stop}
	case e.Freed:
		s.Stage = Idle
		return s, []Deed{RefuseGone}
	case s.Wish.Generation != 0 && s.Wish.Generation < e.Body.Generation:
		s.Stage = Idle
		return s, []Deed{RefuseStale}
	case !mine && !s.Wish.Takeover && !again && e.Body.State != catalog.Released:
		s.Stage = Idle
		return s, []Deed{Refuse}
	}
	s.Stage = Taking
	s = s.take(e.Body)
	if mine {
		return s, []Deed{Keep, Commit}
	}
	if s.From = e.Body; e.Body.State == catalog.Released || e.Body.Holder == s.Self {
		s.From = catalog.Volume{}
	}
	return s, []Deed{Adopt, Keep, Commit}
}

// doubt is behind a commit of which nobody has said that it is there.
func (s State) doubt() State {
	switch s.Stage {
	case Confirming:
		s.Stage = Unconfirmed
	case Taking:
		s.Stage = Doubting
	}
	return s
}

// goesOn reports whether an attach may serve what is here though the record can't be read
// or written now.
func (s State) goesOn() bool {
	return s.Here && (s.Stage == Asking && !s.Wish.Takeover || (s.Stage == Taking || s.Stage == Doubting) && s.IsMine(s.Seen))
}

// take notes the stamp that is going to be committed over a record. It is tried before
// it is sent: if this process ends before the answer, the next knows it.
func (s State) take(over catalog.Volume) State {
	next, own := Stamp{max(over.Epoch, s.Stamp.Epoch, s.Past) + 1, s.Process}, slices.Clone(s.Tried)
	if slices.Contains(own, StampOf(over)) { // those before were made from what this one has replaced; one behind may be on its way
		own = slices.DeleteFunc(own, func(t Stamp) bool { return t.Epoch < over.Epoch })
	}
	for _, t := range own {
		next.Epoch = max(next.Epoch, t.Epoch+1)
	}
	if i := slices.IndexFunc(own, func(t Stamp) bool { return t.Incarnation == s.Process && t.Epoch > max(over.Epoch, s.Past) }); i >= 0 {
		next = own[i] // it is sent again
	}
	own = append(slices.DeleteFunc(own, func(t Stamp) bool { return t == next }), next)
	s.Seen, s.Tried = over, own[max(0, len(own)-triedMax):]
	return s
}

// confirmed goes by what the record says of a volume that is served.
func (s State) confirmed(e Sighted, mine bool) (State, []Deed) {
	switch {
	case !mine || e.Body.State == catalog.Released:
		s.Stage = Lost
		return s, []Deed{Shut, Stop}
	case s.Stage == Unconfirmed, s.Stage == Serving && s.Past >= s.Stamp.Epoch:
		s.Stage = Confirming
		return s.take(e.Body), []Deed{Keep, Open, Commit}
	case s.Stage == Checking:
		s.Stage = Serving
		return s, []Deed{Open}
	}
	return s, nil
}

// unkept goes on under the epoch that is known, where the record says that it is this node's.
func (s State) unkept() (State, []Deed) {
	switch {
	case s.Stage == Confirming:
		return s.doubt(), []Deed{Open}
	case s.goesOn():
		return s.unreadable()
	}
	s.Stage = Idle
	return s, []Deed{RefuseFull}
}

// unreadable goes on without the record, where this node had the volume.
func (s State) unreadable() (State, []Deed) {
	switch {
	case s.Stage == Checking, s.Stage == Unconfirmed:
		s.Stage = Unconfirmed
		return s, []Deed{Open}
	case s.goesOn():
		s.Stage = Unconfirmed
		return s, []Deed{Serve}
	case s.Stage == Doubting && s.tells(): // who had it looks for itself
		s.Stage = Idle
		return s, []Deed{Tell, RefuseAway}
	case s.Stage == Asking || s.Stage == Doubting:
		s.Stage = Idle
		return s, []Deed{RefuseAway}
	}
	return s, nil
}

// tells reports whether another is to be told that the volume is not its any more.
func (s State) tells() bool { return s.From.Holder != trust.PublicKey{} }

// written has the next stamp.
func (s State) written() (State, []Deed) {
	before := s.Stage
	s.Stamp, s.Tried, s.Stage, s.Here = s.Next(), nil, Serving, true
	switch {
	case before == Confirming: // what was tried is on disk, which does for a start
		return s, []Deed{Open, Keep}
	case s.tells():
		return s, []Deed{Keep, Tell, Serve}
	}
	return s, []Deed{Keep, Serve}
}
