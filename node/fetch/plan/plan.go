// Package plan is one member's mind on what it fetches: whom to ask for a run, in
// which order, when to go to the origin, when to give up; who waits for whose work; who
// failed or lied; whom to watch, and who announces. It has no clock, no goroutine and no
// I/O: a caller feeds events to a Member and carries out the actions that it answers
// with. The daemon, the tests and the simulator run it.
//
// The ladder of a run that this node's cache does not hold: the run's lead in
// the farm, chosen by rendezvous hashing; for the lead itself, the members that
// rank next (after a join, the second is the old lead), the members whose
// bitmaps show the run, then outside: members of other farms that show it, the
// lead among the farms that announced the root, and the origin.
//
// A request to bring something in has a Depth, and what it leads to is deeper:
// however the views of members differ, no two of them wait for each other.
//
// No source holds a job, whatever signs of progress it shows: beside one that
// brings nothing the next that shows what is missing is asked; when nothing comes
// for longer, the climb goes on beside it; in the end it is dropped.
package plan

import "time"

// Peer names a member.
type Peer string

const (
	// leadsAsked bounds the members asked in turn to lead a run: the lead, and
	// those that rank next when it does not answer.
	leadsAsked = 3
	// nextRanks is how many members that rank behind the lead are asked whether they
	// hold a run before anyone outside is: a join or a leave shifts the ranks by one.
	nextRanks = 2
	// holdersAsked bounds the members of this farm asked because their bitmaps show
	// the run: all that are followed, since an answer costs less than the origin and
	// bitmaps do not tell of evictions. Outside, swarmHoldersAsked are.
	holdersAsked      = 32
	swarmHoldersAsked = 3
	// announcersAsked bounds the members asked of the farms that lead outside.
	announcersAsked = 3
	// anyoneAsked bounds the members asked by a node that can't read the origin:
	// it does not know which of them can.
	anyoneAsked = 32
	// wordsEnough is how many members have to say that the origin has not what is
	// missing: one that lies ends no guest of who can't ask it.
	wordsEnough = 2
	// wordsAsked is how many are asked for it whom a lead has asked already: it may be
	// down for a while only, and then they are asked in vain again and again.
	wordsAsked = 4
	// refersMax bounds how often a job follows a member's word on who has a run.
	refersMax = 2
	// readsMax is how often a job reads the origin: once beside a slow member, and
	// once in its turn.
	readsMax = 2
	// triedMax bounds how many failures a job remembers.
	triedMax = 16

	// FarmWait is how long the bitmaps of the farm are waited for when a root is new
	// to this node: a round trip, or two. A silent member is not waited for longer.
	FarmWait = 250 * time.Millisecond
	// SwarmWait is how long prefetch waits for announcements of a cold root, unless it
	// has seen that they have all come: as long as a DHT takes to show one to all others,
	// or else each farm reads the origin by itself. A guest does not wait.
	SwarmWait = 2500 * time.Millisecond
	// SettleLook is how often who waits looks whether they have all come.
	SettleLook = 100 * time.Millisecond
	// lastWait is how long everybody waits for them where nobody else is left to ask.
	lastWait = 500 * time.Millisecond
	// HedgeAfter is how long a guest's read may hang before it may go to the
	// origin beside, and how often it is asked again whether the budget allows it.
	HedgeAfter = time.Second
)

// Depth says how far a request has come from the reader that it serves. A job
// asks others to bring something in only with deeper requests, and joins only
// work that is as deep or deeper.
type Depth uint8

// The depths.
const (
	// Own: this node wants it.
	Own Depth = iota
	// Led: a member of this farm takes this node for the lead, or this node, as
	// the lead, wants it itself.
	Led
	// Outer: a member of another farm takes this farm for the lead.
	Outer
	// OuterPassed: the same, and another farm had passed the request on.
	OuterPassed
	// Last: a member of this farm passed the request on.
	Last

	// Depths is their number.
	Depths = int(Last) + 1
)

// Received returns the depth of a request that a member of this farm (near) or of
// another one sent.
func Received(near, passed bool) Depth {
	switch {
	case near && passed:
		return Last
	case near:
		return Led
	case passed:
		return OuterPassed
	}
	return Outer
}

// near returns how a member of this farm is asked to lead on behalf of d. ok is
// false where the request has come far enough.
func (d Depth) near() (passed, ok bool) { return d > Own, d < Last }

// far is near for members of other farms.
func (d Depth) far() (passed, ok bool) { return d > Led, d < OuterPassed }

// Config says what a Job is about.
type Config struct {
	// Key of the run, which its lead is chosen by, and the root that it is of.
	Key  string
	Root *Root
	// Level of the objects: 0 for chunks, else map nodes.
	Level int
	// Depth says for whom. From is the member that asked, if one did, and FromFarm
	// its farm.
	Depth    Depth
	From     Peer
	FromFarm string
	// Guest is true when a guest of this node is blocked: it may hedge.
	Guest bool
	// NoOrigin is true when nobody is to read the origin for it: not this node, nor, as the
	// request says so, those that it asks to bring it in.
	NoOrigin bool
	// Hurry is true when a guest is blocked, here or at the member that asked, and Ahead
	// when one will probably want it next.
	Hurry, Ahead bool
	// Ask is the member elsewhere that is to be asked for it first; "" for none.
	Ask Peer
}

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds.
const (
	// Start begins the job.
	Start EventKind = iota
	// Answered ends an Ask.
	Answered
	// OriginEnded ends a ReadOrigin.
	OriginEnded
	// Brought says that a member that is asked has brought something of use.
	Brought
	// Endgame says that a prefetch waits for nothing but this and a few others: what is
	// missing is asked of a second member of this farm, if one shows it.
	Endgame
	// Waited ends a WaitFarm, a WaitSwarm or a WaitReads.
	Waited
	// Woke says that it is time for what Wake has named, or that what was missing
	// has come another way.
	Woke
)

// Event is what happened to a job, or to a look for a name.
type Event struct {
	Kind EventKind
	Job  *Job
	Look *Look
	// Peer answered or brought something.
	Peer Peer
	// Bytes is how much Brought has brought, as the origin has it, if that is known.
	Bytes int64
	// Spare is how many bytes a second a member that has Answered says it has left for this
	// node, 0 if it says nothing.
	Spare int64
	// Refer names a member that has what is missing, of Answered; the one that says so is
	// asked again if that is not true. One that was asked for what it has may name the
	// member that leads; itself, one that is busy.
	Refer Peer
	// Why is the reason of a failure, for people; "" when the source has answered
	// that it has no more.
	Why string
	// Never says of a failure that to ask again is in vain: a member has answered with
	// what is of no use, the origin that the bytes are gone or damaged. Of any other it
	// may come right.
	Never bool
	// Nowhere says of a member of this farm that was to bring it in that it has the word
	// of the origin that something of it is gone, or damaged there.
	Nowhere bool
	// Saw is what a lead has read under the name that is looked for; nil where it could
	// not read it.
	Saw *Sight
}

// ActionKind is the kind of an Action.
type ActionKind uint8

// The kinds.
const (
	// Ask a member for what is missing; answered by Answered.
	Ask ActionKind = iota
	// ReadOrigin reads the run there; answered by OriginEnded.
	ReadOrigin
	// WaitFarm waits until FarmSettled, at most FarmWait; answered by Waited.
	WaitFarm
	// WaitSwarm waits for announcements, as long as Wait says; answered by Waited.
	WaitSwarm
	// WaitReads waits for the reads of the origin that bring in what is missing, at most
	// ReadingWait; answered by Waited.
	WaitReads
	// Try finds out whether a member that failed answers again; answered by Work or
	// Fail.
	Try
	// Drop the Ask of a member that is under way: it has brought nothing for too
	// long, which counts as a failure. It is not answered.
	Drop
	// Done: nothing is missing. What is under way may be dropped.
	Done
	// Fail: every source was tried.
	Fail
)

// Action is what the caller is to do next.
type Action struct {
	Kind ActionKind
	// Peer is whom to ask. Fetch tells it to bring in what it lacks, and Passed
	// that others have passed the request on.
	Peer   Peer
	Fetch  bool
	Passed bool
	// Relay tells it to bring in what it lacks from members of its farm, which it shows for
	// them, and from nobody else.
	Relay bool
	// Version is the latest that others have seen, of an Ask for a name.
	Version uint64
	// Hedge says of ReadOrigin that a member is being asked too: only what is
	// missing is to be read, and it counts against the budget.
	Hedge bool
	// Wait is how long, of WaitSwarm.
	Wait time.Duration
	// Quiet is for how long it has brought nothing, of Drop.
	Quiet time.Duration
	// Tried says what was tried, of Fail; Final that what is missing is nowhere, by the
	// word of the origin, to this node or those that it has asked: whoever waits need wait
	// no longer.
	Tried []Tried
	Final bool
}

// Tried is a source that was tried in vain: a member, or "" for the origin. Why is
// "absent" where it has answered that it has no more.
type Tried struct {
	Peer Peer
	Why  string
}
