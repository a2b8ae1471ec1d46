package plan

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan/hedge"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// providersMax bounds the members remembered for reading the origin where this
	// node could not.
	providersMax = 4
	// lieAside is how long a member that lied is passed over, and strangerAside one that
	// did not prove that it may be asked: a certificate may yet come.
	lieAside      = 10 * time.Minute
	strangerAside = time.Minute
	// seenMax bounds the members that were met and that gossip does not tell of, and seenFor
	// is how long they count as here.
	seenMax = 64
	seenFor = time.Minute
	// announcersPerFarm announce a root: a second one outlives the first.
	announcersPerFarm = 2
)

// Member is one member's whole mind on what it fetches: who is in its farm and leads
// what, who failed or lied, what hedging may cost, what others show of each root, and
// what is on its way. Its caller tells it what happens, under one lock, and carries out
// what Step answers with. Not safe for concurrent use.
type Member struct {
	Breaker
	hedge.Budget
	// Origin is true while this node can read the origin, Asks while it can ask other
	// members at all, and Searches while it can search for those of other farms.
	Origin, Asks, Searches bool

	self Peer
	name Peer // of the farm
	live []Peer
	seen map[Peer]time.Time // when one was met last that gossip does not tell of
	farm ranking            // both
	// names is farm, for names: who leads one, of many, and no more of each than that.
	names ranking

	providers []Peer // that lately brought in what this node could not, the latest first

	loads loads

	roots map[*Root]struct{} // that somebody shows something of
	bytes int                // of their bitmaps
	uses  uint64             // of roots
}

// NewMember returns the mind of a member that has met nobody.
func NewMember(self Peer, farm string) *Member {
	return &Member{self: self, name: Peer(farm), live: []Peer{self}, farm: ranking{members: []Peer{self}}, names: ranking{members: []Peer{self}, most: leadsAsked}, roots: map[*Root]struct{}{}}
}

// Farm takes the live members of this farm, this node included, as gossip tells, if they
// are others than before.
func (m *Member) Farm(live []Peer) {
	if slices.Equal(m.live, live) {
		return
	}
	for _, p := range m.live { // gossip has told of it, and that it is gone
		delete(m.seen, p)
	}
	m.live = slices.Clone(live)
	m.gather()
}

// Seen notes a member of this farm that has asked this node or answered it: whether or not
// gossip tells of it, it is here, and leads as all others do.
func (m *Member) Seen(p Peer, now time.Time) {
	if _, ok := m.seen[p]; ok {
		m.seen[p] = now
		return
	}
	if m.near(p) || len(m.seen) >= seenMax {
		return
	}
	if m.seen == nil {
		m.seen = map[Peer]time.Time{}
	}
	maps.DeleteFunc(m.seen, func(_ Peer, at time.Time) bool { return now.Sub(at) > seenFor })
	m.seen[p] = now
	m.gather()
}

// gather makes the farm of those that gossip tells of and those that were met.
func (m *Member) gather() {
	all := m.live
	for _, p := range slices.Sorted(maps.Keys(m.seen)) {
		if !slices.Contains(m.live, p) {
			all = append(slices.Clip(all), p)
		}
	}
	m.farm.set(all)
	m.names.set(all)
}

func (m *Member) near(p Peer) bool { return slices.Contains(m.farm.members, p) }

// Better returns the member that leads a run in the eyes of this node, for one of this farm
// that asks and takes itself for the lead, and does not see it.
func (m *Member) Better(key string, than Peer, now time.Time) (lead Peer, ok bool) {
	m.Seen(than, now)
	for _, place := range m.farm.order(key) {
		if lead = m.farm.members[place]; !m.passes(lead, now, false) {
			break
		}
	}
	return lead, lead != m.self && outranks(key, lead, than)
}

// outranks reports whether p leads a run rather than q.
func outranks(key string, p, q Peer) bool {
	return cmp.Or(cmp.Compare(weight(key, p), weight(key, q)), cmpPeers(q, p)) > 0
}

// Leads reports whether this node leads a run.
func (m *Member) Leads(key string) bool {
	order := m.farm.order(key)
	return len(order) > 0 && m.farm.members[order[0]] == m.self
}

// Step tells the member of an event and returns what to do.
func (m *Member) Step(now time.Time, e Event) []Action {
	if e.Look != nil {
		return e.Look.step(now, e)
	}
	return e.Job.step(now, e)
}

// Provided notes a member that brought in what this node could not.
func (m *Member) Provided(p Peer) {
	m.providers = slices.DeleteFunc(m.providers, func(q Peer) bool { return p == q })
	m.providers = slices.Insert(m.providers, 0, p)
	m.providers = m.providers[:min(len(m.providers), providersMax)]
}

// Strange notes that a member is not to be asked, as it did not prove who it is.
func (m *Member) Strange(p Peer, now time.Time) { m.Aside(p, now, strangerAside) }

// Lied notes that a member's bytes were not what it was asked for: a stranger or a seed
// is to be banned at once, a member of this farm is set aside, and what it showed forgotten. first is false where it
// was passed over already: more than one lie may be on its way.
func (m *Member) Lied(p Peer, now time.Time) (ban, first bool) {
	first = !m.Aside(p, now, lieAside)
	for r := range m.roots {
		r.Drop(p)
	}
	return !m.near(p), first
}

// Announces reports whether this node is to announce a root: of the farm's members that
// hold some of it the first two by rendezvous do. While nobody does, those of all the
// farm that want it: farms that want one image at once are to find each other before
// each has read it.
func (m *Member) Announces(r *Root, holds bool, now time.Time) bool {
	if !holds && (!r.Wanted(now) || slices.ContainsFunc(m.farm.members, r.shows)) {
		return false
	}
	ahead := 0
	for _, place := range m.farm.order(r.key) {
		p := m.farm.members[place]
		if p == m.self || ahead == announcersPerFarm {
			break
		}
		if !holds || r.shows(p) {
			ahead++
		}
	}
	return ahead < announcersPerFarm
}

// due are the members to try, as their time is over: of this farm, or that show some of
// a root elsewhere.
func (m *Member) due(r *Root, now time.Time) (acts []Action) {
	if len(m.failed) == 0 {
		return nil
	}
	for p := range m.failed {
		if (m.near(p) || r.shows(p)) && m.Due(p, now) {
			acts = append(acts, Action{Kind: Try, Peer: p})
		}
	}
	slices.SortFunc(acts, func(a, b Action) int { return cmpPeers(a.Peer, b.Peer) })
	return acts
}

const (
	// keptMax bounds the places that a ranking keeps, to 2 MiB: the orders of a thousand
	// runs, in a farm of a thousand.
	keptMax = 1 << 20
	// orderSize is how many places the rest of an order takes as much memory as.
	orderSize = 64
)

// ranking is members in the order in which they lead, by key. Orders are kept until the
// members change.
type ranking struct {
	members []Peer
	most    int                 // places of an order; 0 for all
	orders  map[string][]uint16 // places in members
	kept    int
}

// set takes the members, if they are others than before.
func (r *ranking) set(members []Peer) (changed bool) {
	if slices.Equal(r.members, members) {
		return false
	}
	r.members, r.orders, r.kept = slices.Clone(members[:min(len(members), 1<<16)]), nil, 0
	return true
}

// order returns the places of members, the one that leads first.
func (r *ranking) order(key string) []uint16 {
	if o, ok := r.orders[key]; ok {
		return o
	}
	weights := make([]uint64, len(r.members))
	out := make([]uint16, len(r.members))
	for i, p := range r.members {
		weights[i], out[i] = weight(key, p), uint16(i)
	}
	slices.SortFunc(out, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(weights[b], weights[a]), cmpPeers(r.members[a], r.members[b]))
	})
	if r.most > 0 {
		out = slices.Clone(out[:min(len(out), r.most)])
	}
	if r.kept+len(out)+orderSize > keptMax {
		r.orders, r.kept = nil, 0
	}
	if r.orders == nil {
		r.orders = map[string][]uint16{}
	}
	r.orders[key] = out
	r.kept += len(out) + orderSize
	return out
}

// Rank orders members by rendezvous hashing: the first leads the run of that
// key. Every member with the same list computes the same order, and a join or
// leave moves only the runs of the one that came or went.
func Rank(key string, members []Peer) []Peer {
	r := ranking{members: members}
	out := make([]Peer, len(members))
	for i, place := range r.order(key) {
		out[i] = members[place]
	}
	return out
}

func cmpPeers(a, b Peer) int { return cmp.Compare(a, b) }

func weight(key string, m Peer) uint64 { return content.Weight(key, string(m)) }
