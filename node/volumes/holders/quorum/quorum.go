// Package quorum decides, for the writer of a volume whose flushes are held by k other
// members of its farm, what may be acknowledged and who holds it. It is pure: no I/O, no
// clock, no lock; its caller feeds it events and does what it says.
//
// # The rule
//
// A flush is acknowledged when everybody has it whom the volume's record names, or may name: while a change of
// the record is under way, or its outcome is not known, those of before and of after have to have it. So
// whoever takes the volume over, by whatever record it reads, finds each acknowledged flush with each single
// holder that it names. Nothing new is acknowledged where a record may name fewer than k, unless the record
// says that the volume is degraded: then this node alone is enough.
package quorum

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/trust"
)

const (
	// DegradeAfter is how long fewer than k holders are waited for before a volume that
	// may goes on alone: sooner than a flush fails, later than a holder is replaced.
	DegradeAfter = 20 * time.Second
	// againAfter is how long a member that was lost is not asked again, unless the record
	// names it: then returnAfter, for it may be restarting.
	againAfter  = time.Minute
	returnAfter = time.Second
	// aloneFor is how long a volume that is degraded goes on alone after its record was last
	// seen to be this node's: whoever took it over by then is told that it was degraded.
	aloneFor = 10 * time.Second
	// nearMax is how many entries a new holder may lack before a degraded volume waits for
	// it: some milliseconds of writes.
	nearMax = 1024
)

// Record is what a volume's record says about who has what was flushed.
type Record struct {
	Holders  []trust.PublicKey
	Degraded bool // this node alone may have more than they
}

func (r Record) equal(o Record) bool {
	return r.Degraded == o.Degraded && slices.Equal(r.Holders, o.Holders)
}

// An Event is what has happened.
type Event interface{ change(*State) }

// The events.
type (
	// Tick tells the time, and which members are alive: those asked first come first.
	Tick struct {
		Now  time.Time
		Live []trust.PublicKey
	}
	// Flushing says that a flush waits for all up to Seq.
	Flushing struct{ Seq uint64 }
	// Had says that a member is followed, and has all up to Seq, durable.
	Had struct {
		Member trust.PublicKey
		Seq    uint64
	}
	// Lost says that a member could not be reached, refuses, or has no room.
	Lost struct{ Member trust.PublicKey }
	// Empty says that a member which the record names has nothing of the volume, or not all that it had. It
	// begins anew once the record was written again as it is: whoever was about to take the volume over by it
	// is too late then, and who comes later finds out that this one is not whole. So the record never says that
	// nobody holds what was acknowledged, and no flush waits for the bucket.
	Empty struct{ Member trust.PublicKey }
	// Behind says that a member can't have what is written, before Based: what it lacks was merged with what it
	// has, or with what the bucket has. If the record names it, it is named until others have all.
	Behind struct{ Member trust.PublicKey }
	// Based says that the record has more of the journal, which holders need not.
	Based struct{}
	// Recorded says that the record was written, and nothing else was written since.
	Recorded struct{ Record Record }
	// Confirmed says that the record was read just now, and is this node's.
	Confirmed struct{}
	// Doubted says that the outcome of a Commit is not known.
	Doubted struct{}
	// Wanted says how many holders there are to be from now on; see New.
	Wanted struct {
		K    int
		Lone bool
	}
)

// An Action is what the caller does.
type Action any

// The actions.
type (
	// Follow has a member take what is written. Begin: it has nothing yet, and is not whole
	// before it has all that is Needed.
	Follow struct {
		Member trust.PublicKey
		Begin  bool
	}
	// Leave has a member followed no more; it is none of the holders.
	Leave struct{ Member trust.PublicKey }
	// Commit writes the record: Recorded or Doubted follows.
	Commit struct{ Record Record }
)

// State is how the holders of one volume stand. Use: New, Step.
type State struct {
	k    int
	lone bool

	said    Record   // the record, as it was last known
	maybe   []Record // changes of which the outcome is not known
	next    *Record  // that is to be written
	writing bool

	followed map[trust.PublicKey]*member
	resting  map[trust.PublicKey]time.Time // until when they are not asked again
	lost     map[trust.PublicKey]bool      // of those named, until they are back
	empty    map[trust.PublicKey]bool
	anew     map[trust.PublicKey]bool // of those named, who are to begin
	behind   map[trust.PublicKey]bool

	now          time.Time
	confirmed    time.Time // when the record was last known to be this node's
	live         []trust.PublicKey
	floor        uint64 // what may have been acknowledged
	acknowledged uint64
	flushing     uint64
	short        time.Time // since when a flush waits,
	moved        time.Time // and when that came nearer last:
	got          uint64    // what k who are followed have, all of them
}

type member struct {
	had            uint64
	begins, joined bool
}

// New returns the state of a volume with k holders, that may be flushed alone if lone.
// Whatever was acknowledged before is at most floor.
func New(k int, lone bool, said Record, floor uint64) *State {
	return &State{
		k: k, lone: lone, said: said, floor: floor,
		followed: map[trust.PublicKey]*member{}, resting: map[trust.PublicKey]time.Time{}, lost: map[trust.PublicKey]bool{}, empty: map[trust.PublicKey]bool{}, anew: map[trust.PublicKey]bool{}, behind: map[trust.PublicKey]bool{},
	}
}

// Step takes what has happened and says what is to be done.
func (s *State) Step(e Event) []Action {
	e.change(s)
	s.acknowledged = max(s.acknowledged, s.reach())
	switch {
	case s.flushing <= s.acknowledged:
		s.short, s.got = time.Time{}, 0
	case s.short.IsZero():
		s.short, s.moved = s.now, s.now
	case s.nearer():
		s.moved = s.now
	}
	return append(s.follow(), s.write()...)
}

// Acknowledged is up to which seq flushes may be acknowledged, among those that this node has durable itself.
func (s *State) Acknowledged() uint64 { return s.acknowledged }

// Needed is up to where a member has to have everything that the record is to name.
func (s *State) Needed() uint64 { return max(s.floor, s.acknowledged) }

// Degraded reports whether the record says so.
func (s *State) Degraded() bool { return s.said.Degraded }

// Holders are those whom the record names.
func (s *State) Holders() []trust.PublicKey { return s.said.Holders }

// Named are all who may be holders by the record, whatever it may be by now; none where by
// one of those this node may go on alone, or has to find more first.
func (s *State) Named() (all []trust.PublicKey) {
	for _, r := range s.records() {
		if r.Degraded || len(r.Holders) < s.k {
			return nil
		}
		all = append(all, r.Holders...)
	}
	slices.SortFunc(all, func(a, b trust.PublicKey) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(all)
}

// MayBe reports whether the record may be that one by now.
func (s *State) MayBe(r Record) bool { return slices.ContainsFunc(s.records(), r.equal) }

// records are all that the record may be by now.
func (s *State) records() []Record {
	all := append(slices.Clone(s.maybe), s.said)
	if s.next != nil {
		all = append(all, *s.next)
	}
	return all
}

// Lowest is up to where all have the volume who take what is written, and who may come back
// to that; MaxUint64 if there are none.
func (s *State) Lowest() uint64 {
	low := uint64(math.MaxUint64)
	for _, m := range s.followed {
		if m.joined || !s.said.Degraded {
			low = min(low, m.had)
		}
	}
	if len(s.lost) > 0 && !s.said.Degraded {
		return 0
	}
	return low
}

// Needs reports whether a flush waits, and members have nothing to go on from before Based.
func (s *State) Needs() bool { return !s.short.IsZero() && len(s.behind) > 0 }

// Short reports whether a flush has waited for that long.
func (s *State) Short(d time.Duration) bool { return !s.short.IsZero() && s.now.Sub(s.short) >= d }

// Stuck reports whether a flush waits, and nothing has come nearer for that long to what it waits
// for: members who are being filled get there in the end, as a journal is no larger than a disk.
func (s *State) Stuck(d time.Duration) bool { return !s.short.IsZero() && s.now.Sub(s.moved) >= d }

// nearer reports whether all who are followed, if they are enough, have more than before, or
// one is about to begin, maybe once others are filled.
func (s *State) nearer() bool {
	least := uint64(math.MaxUint64)
	for _, m := range s.followed {
		if m.begins && !m.joined {
			return true
		}
		least = min(least, m.had)
	}
	if len(s.followed) < s.k || least <= s.got {
		return false
	}
	s.got = least
	return true
}

func (e Tick) change(s *State) {
	s.now, s.live = e.Now, e.Live
	maps.DeleteFunc(s.resting, func(_ trust.PublicKey, until time.Time) bool { return !s.now.Before(until) })
}

func (e Flushing) change(s *State) { s.flushing = max(s.flushing, e.Seq) }

func (e Had) change(s *State) {
	if m := s.followed[e.Member]; m != nil {
		m.joined, m.had = true, max(m.had, e.Seq)
		delete(s.lost, e.Member)
	}
}

func (e Lost) change(s *State) {
	delete(s.followed, e.Member)
	s.resting[e.Member] = s.now.Add(againAfter)
	if s.named(e.Member) {
		s.lost[e.Member] = true
		s.resting[e.Member] = s.now.Add(returnAfter)
	}
}

func (e Empty) change(s *State) {
	delete(s.followed, e.Member)
	s.empty[e.Member] = true
}

func (e Behind) change(s *State) {
	delete(s.followed, e.Member)
	s.behind[e.Member] = true
}

func (Based) change(s *State) { // what members lacked, the record has
	clear(s.behind)
	clear(s.resting)
}

func (e Recorded) change(s *State) {
	s.said, s.maybe, s.next, s.writing, s.confirmed = e.Record, nil, nil, false, s.now
	maps.Copy(s.anew, s.empty)
	clear(s.empty)
	for _, of := range []map[trust.PublicKey]bool{s.lost, s.anew, s.behind} { // who is not named any more may begin
		maps.DeleteFunc(of, func(m trust.PublicKey, _ bool) bool { return !slices.Contains(s.said.Holders, m) })
	}
}

func (Confirmed) change(s *State) { s.confirmed = s.now }

func (Doubted) change(s *State) {
	if !slices.ContainsFunc(s.maybe, s.next.equal) { // which may be tried for days
		s.maybe = append(s.maybe, *s.next)
	}
	s.next, s.writing = nil, false
}

func (e Wanted) change(s *State) { s.k, s.lone = e.K, e.Lone }

// reach is what all have whom a record may name.
func (s *State) reach() uint64 {
	all := uint64(math.MaxUint64)
	for _, r := range s.records() {
		all = min(all, s.reachOf(r))
	}
	return all
}

func (s *State) reachOf(r Record) uint64 {
	if r.Degraded && s.lone && s.now.Sub(s.confirmed) < aloneFor {
		return s.flushing // which this node has
	}
	if len(r.Holders) < s.k {
		return 0
	}
	all := uint64(math.MaxUint64)
	for _, h := range r.Holders {
		all = min(all, s.had(h))
	}
	return all
}

func (s *State) had(h trust.PublicKey) uint64 {
	if m := s.followed[h]; m != nil && m.joined {
		return m.had
	}
	return 0
}

// follow chooses whom to follow: all whom the record names, and in place of those that
// are lost others who are alive.
func (s *State) follow() (out []Action) {
	named := slices.Clone(s.said.Holders)
	for _, r := range s.maybe {
		named = append(named, r.Holders...)
	}
	var wanted []trust.PublicKey
	good := 0
	for _, m := range named {
		if slices.Contains(wanted, m) || s.empty[m] || s.behind[m] {
			continue
		}
		if !s.lost[m] && good < s.k {
			good++
		}
		wanted = append(wanted, m)
	}
	for _, followed := range []bool{true, false} { // those that are being filled are kept
		for _, m := range s.live {
			if good < s.k && (s.followed[m] != nil) == followed && s.resting[m].IsZero() && !s.empty[m] && !s.behind[m] && !slices.Contains(wanted, m) {
				good++
				wanted = append(wanted, m)
			}
		}
	}
	for _, m := range wanted {
		if s.followed[m] == nil && s.resting[m].IsZero() {
			begins := !s.named(m) || s.anew[m]
			s.followed[m] = &member{begins: begins}
			out = append(out, Follow{m, begins})
			delete(s.anew, m) // if it does not, it is asked once more what it has
		}
	}
	for m := range s.followed {
		if !slices.Contains(wanted, m) && (s.next == nil || !slices.Contains(s.next.Holders, m)) {
			delete(s.followed, m)
			out = append(out, Leave{m})
		}
	}
	return out
}

// named reports whether a record may name a member.
func (s *State) named(h trust.PublicKey) bool {
	return slices.Contains(s.said.Holders, h) || slices.ContainsFunc(s.maybe, func(r Record) bool { return slices.Contains(r.Holders, h) })
}

// write changes the record where that is due. What is going to be written counts as what the record
// may say from then on, so that all new holders have what is acknowledged when it is.
func (s *State) write() []Action {
	if s.writing {
		return nil
	}
	r := s.due()
	if s.next = r; r == nil {
		return nil
	}
	if !r.Degraded && len(r.Holders) == s.k && !r.equal(s.said) && !slices.ContainsFunc(s.maybe, r.equal) {
		for _, h := range r.Holders {
			if s.had(h) < s.Needed() {
				return nil // it waits for that
			}
		}
	}
	s.writing = true
	return []Action{Commit{*r}}
}

// due is what the record should say, nil for what it says.
func (s *State) due() *Record {
	near := s.Needed()
	if s.said.Degraded {
		near -= min(near, nearMax)
	}
	var full []trust.PublicKey
	for _, h := range slices.Concat(s.said.Holders, s.live) {
		if m := s.followed[h]; len(full) < s.k && m != nil && m.joined && m.had >= near && !slices.Contains(full, h) {
			full = append(full, h)
		}
	}
	if len(full) == s.k {
		if r := (Record{Holders: full}); !r.equal(s.said) || len(s.maybe) > 0 {
			return &r
		}
		return nil
	}
	switch {
	case s.lone && !s.said.Degraded && s.Short(DegradeAfter):
		return &Record{s.said.Holders, true}
	case len(s.maybe) > 0: // written once more, its outcome is known
		return &s.maybe[len(s.maybe)-1]
	case len(s.empty) > 0:
		return &s.said
	}
	return nil
}
