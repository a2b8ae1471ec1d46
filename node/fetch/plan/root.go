package plan

import (
	"cmp"
	"math"
	"slices"
	"time"
)

const (
	// nearMax bounds the members of this farm whose bitmaps are followed for a root, and
	// farMax those elsewhere: two announcers of each of 64 farms. A farm that is left
	// out leads nothing in the eyes of this node, and each that leaves others out may
	// cost the origin a read of each run.
	nearMax, farMax = 32, 128
	// farmsLead is how many farms share what nobody has: enough to bring it in at the rate
	// of a whole one though each sends what it brings to several others, and few, as all
	// others have to know them.
	farmsLead = 8
	// crowdMin is how many farms there are in a crowd.
	crowdMin = 2 * farmsLead
	// turnFarms are those that ask the farm that leads a run for it at once, and turnStep how
	// long it takes until twice as many do: each shows the run to others, once it has it.
	// crowdSample is how many announcers say how many there are.
	turnFarms   = 3
	turnStep    = 500 * time.Millisecond
	crowdSample = 8
	// searchTakes is how long a search takes, mostly: the last before prefetch goes on is to
	// have ended.
	searchTakes = 300 * time.Millisecond
	// FoundAll is how many members a search yields at least, if so many have announced the
	// root: the first of them by their weights for its key.
	FoundAll = 10
	// searchInterval is how often the announcements of a root in use are searched for
	// again, and searchLonely how often for searchLonelyTill while nobody was found:
	// farms that want it at once find each other within seconds. searchSoon is the first
	// pause: they do so before prefetch goes on without.
	searchInterval   = 30 * time.Second
	searchLonely     = time.Second
	searchLonelyTill = 15 * time.Second
	searchSoon       = 200 * time.Millisecond
	// followIdle is how long after the last want a root is followed: what was seen
	// is good for the next want's first questions.
	followIdle = 2 * time.Minute
	// watchRetry is how soon a member whose bitmap could not be had is tried again,
	// and watchTries how often one of another farm is before it is forgotten.
	watchRetry = 5 * time.Second
	watchTries = 6
	// uselessRetry is how soon one whose bitmap is of no use is looked at again.
	uselessRetry = time.Minute
)

// Root is what a member knows of who has what of one root: the bitmaps of members of
// its farm, and of those that announced the root, or one before it, elsewhere; and
// whom it is to watch for that.
type Root struct {
	m    *Member
	key  string
	held map[Peer]*bitmap
	// bytes of the bitmaps, and when they were last looked at, by Member.uses.
	bytes int
	used  uint64
	// orders of the prefetches that are under way.
	orders []*Order

	following bool
	began     time.Time // the first time
	wanted    time.Time // the last time
	near, far watch
	found     []found // the far members, the one that ranks first before
	farmOf    map[Peer]Peer
	farms     ranking // that lead: see rankFarms
	last, now sights  // of the search before, and of the one that is under way
	settled   bool
	// visible says that a search has found others of this farm, and has been over since long
	// enough for those to be met that it found beside: they lead what they do.
	visible bool
}

// sights is what a search has found: how many members, and a sum of who they are.
type sights struct {
	count int
	sum   uint64
	own   bool // of this farm
}

// watch is the members of this farm whose bitmaps are followed, or those elsewhere; met
// are those that have answered once, or could not be reached.
type watch struct{ watched, met map[Peer]bool }

func newWatch() watch { return watch{map[Peer]bool{}, map[Peer]bool{}} }

// found is a member that announced the root; a seed has no farm.
type found struct {
	peer, farm Peer
	rank       uint64
}

// Root returns what a member is to know of a root: nothing yet. The key is what it is
// announced under: all who search for it rank its announcers alike, see content.Weight.
func (m *Member) Root(key string) *Root {
	return &Root{m: m, key: key, held: map[Peer]*bitmap{}, farmOf: map[Peer]Peer{}, near: newWatch(), far: newWatch(), farms: ranking{members: []Peer{m.name}}}
}

// Want notes that a root is wanted from others. begin is true when it is to be followed
// from now on.
func (r *Root) Want(now time.Time) (begin bool) {
	if !r.m.Asks {
		return false
	}
	r.wanted = now
	begin = !r.following
	r.following = true
	if r.began.IsZero() {
		r.began = now
	}
	return begin
}

// Follows reports whether the root is still to be followed; if not, the next Want begins
// anew.
func (r *Root) Follows(now time.Time) bool {
	r.following = r.following && r.Wanted(now)
	return r.following
}

// Rest notes that the root is followed no more, until it is wanted again.
func (r *Root) Rest() { r.following = false }

// Wanted reports whether the root was, lately.
func (r *Root) Wanted(now time.Time) bool {
	return !r.wanted.IsZero() && now.Sub(r.wanted) < followIdle
}

// SettlesIn is how long until announcements have had their time, from the first Want on.
func (r *Root) SettlesIn(now time.Time) time.Duration {
	switch {
	case !r.m.Searches || !r.m.Asks || r.settled:
		return 0
	case r.began.IsZero():
		return SwarmWait
	}
	return max(0, SwarmWait-now.Sub(r.began))
}

// NearSettled reports whether the bitmaps of all live members of the farm, or of as many
// as are followed, have been seen; and whether there are strangers to be watched.
func (r *Root) NearSettled() (settled, strangers bool) {
	if !r.m.Asks {
		return true, false
	}
	settled = true
	for _, p := range r.m.farm.members {
		if p == r.m.self {
			continue
		}
		watched := r.near.watched[p]
		stranger := !watched && len(r.near.watched) < nearMax
		strangers = strangers || stranger
		settled = settled && !stranger && (r.near.met[p] || !watched)
	}
	return settled, strangers
}

// NextSearch is when to search again: soon while nobody was found, then after as long
// as the root has been wanted.
func (r *Root) NextSearch(now time.Time) time.Duration {
	wanted, most := now.Sub(r.began), searchInterval
	if len(r.found) == 0 && wanted < searchLonelyTill {
		most = searchLonely
	}
	if last := SwarmWait - searchTakes - wanted; last > 0 {
		return min(searchSoon, last)
	}
	return min(max(wanted, searchSoon), most)
}

// leads returns the farm that leads a run.
func (r *Root) leads(key string) Peer { return r.farms.members[r.farms.order(key)[0]] }

// crowd is how many farms have announced the root, about: the more have, the closer to
// the top those rank that rank first.
func (r *Root) crowd() float64 {
	k := min(len(r.found), crowdSample)
	if k < crowdSample {
		return float64(k)/announcersPerFarm + 1
	}
	below := 1 - float64(r.found[k-1].rank)/math.MaxUint64
	return max(1, float64(k)/below/announcersPerFarm)
}

// turnIn is how long after it wanted a run this farm is to ask the farm that leads it: at
// once where it is one of turnFarms, by its rank for the run; the others leave it to those,
// which show it then. Each turnStep twice as many may ask.
func (r *Root) turnIn(key string) time.Duration {
	return turnIn(weight(key, r.m.name), r.crowd())
}

func turnIn(weight uint64, crowd float64) time.Duration {
	share := float64(weight) / math.MaxUint64
	steps := math.Log2(share * crowd / turnFarms)
	return time.Duration(max(0, steps) * float64(turnStep))
}

// Strangers returns the members of the farm to be watched from now on.
func (r *Root) Strangers() (out []Peer) {
	for _, p := range r.m.farm.members {
		if p != r.m.self && r.claim(r.near, p, nearMax) {
			out = append(out, p)
		}
	}
	return out
}

// Announced takes a member that a search has found, and reports whether it is to be met
// and watched from now on.
func (r *Root) Announced(p Peer, now time.Time) bool {
	r.now.count++
	r.now.sum += weight(r.key, p)
	r.now.own = r.now.own || r.m.near(p)
	return p != r.m.self && !r.m.near(p) && !r.m.passes(p, now, false) && r.claim(r.far, p, farMax)
}

// Searched ends a search; others says whether any other farm is in reach. Where none is,
// or the search has found the same as the one before it, and so few that they are all, no
// announcement is on its way any more.
func (r *Root) Searched(others bool) {
	r.settled = r.settled || !others || r.now == r.last && 0 < r.now.count && r.now.count < FoundAll
	r.visible = r.visible || r.now.own
	r.last, r.now = r.now, sights{}
}

// Again returns the far members of the time before to be watched from now on: one that
// has gone meanwhile announces nothing that would have it found, and forgotten, anew.
func (r *Root) Again() (out []Peer) {
	for _, q := range r.found {
		if r.claim(r.far, q.peer, farMax) {
			out = append(out, q.peer)
		}
	}
	return out
}

func (r *Root) claim(g watch, p Peer, most int) bool {
	if g.watched[p] || len(g.watched) >= most {
		return false
	}
	g.watched[p] = true
	return true
}

// Release notes that a member is watched no more.
func (r *Root) Release(p Peer, far bool) { delete(r.watch(far).watched, p) }

func (r *Root) watch(far bool) watch {
	if far {
		return r.far
	}
	return r.near
}

// Met notes that a member that is watched has answered, or could not be reached.
func (r *Root) Met(p Peer, far bool) { r.watch(far).met[p] = true }

// List adds a member that announced the root and answers: one that was met long ago
// may be gone, and its announcement outlives it. Only members of farms lead, and a seed
// has none: what it may read it may hold, but it brings nothing in.
func (r *Root) List(p Peer, farm string) {
	r.found = slices.DeleteFunc(r.found, func(q found) bool { return q.peer == p })
	it := found{p, Peer(farm), weight(r.key, p)}
	at, _ := slices.BinarySearchFunc(r.found, it, func(a, b found) int { return cmp.Compare(b.rank, a.rank) })
	r.found = slices.Insert(r.found, at, it)
	r.farmOf[p] = it.farm
	r.rankFarms()
}

func (r *Root) unlist(p Peer) {
	r.found = slices.DeleteFunc(r.found, func(q found) bool { return q.peer == p })
	delete(r.farmOf, p)
	r.rankFarms()
}

// rankFarms takes the farms that lead: those whose announcers rank first. These all that
// search find, however many have announced the root, so that they agree on who leads.
func (r *Root) rankFarms() {
	own := r.m.farm.order(r.key)
	own = own[:min(len(own), announcersPerFarm)]
	var farms []Peer
	lead := func(farm Peer) {
		if farm != "" && len(farms) < farmsLead && !slices.Contains(farms, farm) {
			farms = append(farms, farm)
		}
	}
	for _, q := range r.found {
		for len(own) > 0 && weight(r.key, r.m.farm.members[own[0]]) >= q.rank {
			lead(r.m.name)
			own = own[1:]
		}
		lead(q.farm)
	}
	if len(own) > 0 {
		lead(r.m.name)
	}
	slices.Sort(farms)
	if r.farms.set(farms) {
		r.regroup()
	}
}

// Watched is how a look at a member's bitmap has ended.
type Watched struct {
	Far   bool
	Tries int // in vain, in a row
	// Useless says that the bitmap is of no use, and Forbidden that it never will be.
	Useless, Forbidden bool
}

// Watch decides whether a member is watched on, and after which pause; else it is
// forgotten: out of the farm, or silent for long.
func (r *Root) Watch(p Peer, w Watched) (pause time.Duration, on bool) {
	if w.Tries > 0 || w.Useless {
		r.Met(p, w.Far)
	}
	pause = min(watchRetry, time.Duration(w.Tries)*watchRetry+time.Millisecond)
	if w.Useless {
		r.Drop(p)
		pause = uselessRetry
	}
	near := r.m.near(p)
	if !w.Far && near || w.Far && !near && !w.Forbidden && w.Tries < watchTries {
		return pause, true
	}
	r.Drop(p)
	delete(r.watch(w.Far).met, p)
	if w.Far {
		r.unlist(p)
	}
	return 0, false
}
