package fetch

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
)

const (
	// learnedMax bounds the roots that this node has looked up; beyond it those that
	// nobody asked for for longest are forgotten, one part in learnedForgotten: each
	// import and each fold of a volume makes another root.
	learnedMax       = 100_000
	learnedForgotten = 16
	// headsMax bounds the heads of one root that were looked up: it has several where
	// it was imported twice, and seldom more.
	headsMax = 8
	// introducedEach bounds the roots that are known by one member's word, and
	// introducedMax those by the word of any: some 6 KiB each, with the record. Beyond
	// it the oldest of the member goes, or of the one that has most.
	introducedEach = 512
	introducedMax  = 8192
)

// roots is the roots that others may ask for, by head. Those that were introduced
// never push out those that were looked up. Guarded by the Fetcher's mu.
type roots struct {
	states     map[content.CID][]*rootState
	learnedN   int
	introduced map[peer.ID][]*rootState // by introducer, the oldest first
	introN     int
}

func newRoots() roots {
	return roots{states: map[content.CID][]*rootState{}, introduced: map[peer.ID][]*rootState{}}
}

// learned returns the state of a root that was looked up with that head, or nil.
func (r *roots) learned(id content.CID, head pack.Head) *rootState {
	for _, rs := range r.states[id] {
		if rs.introducer == "" && rs.head == head {
			return rs
		}
	}
	return nil
}

// learn enters a root that was looked up, or returns what is known of it.
func (r *roots) learn(rs *rootState) *rootState {
	if known := r.learned(rs.id, rs.head); known != nil {
		known.used = rs.used
		return known
	}
	var heads []*rootState
	for _, other := range slices.Clone(r.states[rs.id]) {
		switch {
		case other.introducer == "":
			heads = append(heads, other)
		case other.head.Scope == rs.head.Scope:
			r.remove(other)
		}
	}
	if len(heads) >= headsMax {
		r.remove(slices.MinFunc(heads, byUse))
	}
	if r.learnedN >= learnedMax {
		r.forget()
	}
	r.learnedN++
	r.states[rs.id] = append(r.states[rs.id], rs)
	return rs
}

func byUse(a, b *rootState) int { return a.used.Compare(b.used) }

// forget makes room for others. Who has one open reads on; who asks for one
// introduces it again.
func (r *roots) forget() {
	var all []*rootState
	for _, states := range r.states {
		for _, rs := range states {
			if rs.introducer == "" {
				all = append(all, rs)
			}
		}
	}
	slices.SortFunc(all, byUse)
	for _, rs := range all[:max(1, len(all)/learnedForgotten)] {
		r.remove(rs)
	}
}

// introduce enters a root by a member's word, if it is not known.
func (r *roots) introduce(rs *rootState) {
	for _, known := range r.states[rs.id] {
		if known.head == rs.head || known.introducer == "" && known.head.Scope == rs.head.Scope {
			return
		}
	}
	by := rs.introducer
	if r.introN >= introducedMax && len(r.introduced[by]) == 0 {
		most := by
		for id, list := range r.introduced {
			if len(list) > len(r.introduced[most]) {
				most = id
			}
		}
		r.remove(r.introduced[most][0])
	} else if r.introN >= introducedMax || len(r.introduced[by]) >= introducedEach {
		r.remove(r.introduced[by][0])
	}
	r.introN++
	r.introduced[by] = append(r.introduced[by], rs)
	r.states[rs.id] = append(r.states[rs.id], rs)
}

// remove takes a root out.
func (r *roots) remove(rs *rootState) {
	same := func(other *rootState) bool { return other == rs }
	if r.states[rs.id] = slices.DeleteFunc(r.states[rs.id], same); len(r.states[rs.id]) == 0 {
		delete(r.states, rs.id)
	}
	if rs.introducer == "" {
		r.learnedN--
		return
	}
	r.introN--
	if r.introduced[rs.introducer] = slices.DeleteFunc(r.introduced[rs.introducer], same); len(r.introduced[rs.introducer]) == 0 {
		delete(r.introduced, rs.introducer)
	}
}

// end takes out all states of a root that have that scope, and returns those that
// were looked up.
func (r *roots) end(id content.CID, scope content.Scope) (out []*rootState) {
	for _, rs := range slices.Clone(r.states[id]) {
		if rs.head.Scope != scope {
			continue
		}
		r.remove(rs)
		if rs.introducer == "" {
			out = append(out, rs)
		}
	}
	return out
}

// best returns the state by which a root is read, of those that may: one that was
// looked up before one that was introduced, one whose head has proved right before
// others, one that the asker itself introduced, and then the widest.
func (r *roots) best(id content.CID, asker peer.ID, may func(*rootState) bool) (best *rootState) {
	most := -1
	for _, rs := range r.states[id] {
		if !may(rs) {
			continue
		}
		rank := int(rs.reach())
		for i, holds := range []bool{rs.introducer == asker, rs.proven.Load(), rs.introducer == ""} {
			if holds {
				rank += 4 << i
			}
		}
		if rank > most {
			best, most = rs, rank
		}
	}
	return best
}

// root returns what is known of a root that this node itself asks for, or nil.
func (f *Fetcher) root(id content.CID) *rootState {
	return f.asked(id, "", func(*rootState) bool { return true })
}

// served returns the state of a root for a member that asks for it, and how far what
// it is answered from must go; nil when the root is unknown, or not for the asker.
func (f *Fetcher) served(id content.CID, from exchange.Peer) (*rootState, cache.Reach) {
	rs := f.asked(id, from.ID, func(rs *rootState) bool {
		return rs.reach() > cache.ReachNone && from.Identity.MayRead(rs.head.Scope)
	})
	if rs == nil {
		return nil, cache.ReachNone
	}
	if reach := rs.reach(); reach == cache.ReachOf(rs.head.Scope, f.cfg.Identity) {
		return rs, reach
	}
	return nil, cache.ReachNone // its record has ended meanwhile
}

func (f *Fetcher) asked(id content.CID, asker peer.ID, may func(*rootState) bool) *rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	rs := f.roots.best(id, asker, may)
	if rs != nil {
		rs.used = f.cfg.Now()
	}
	return rs
}

// all returns the roots that others may ask for.
func (f *Fetcher) all() []*rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*rootState, 0, f.roots.learnedN+f.roots.introN)
	for _, states := range f.roots.states {
		out = append(out, states...)
	}
	return out
}

// heads returns the states of a root: a chunk that lands under one is here for all.
func (f *Fetcher) heads(rs *rootState) []*rootState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*rootState{rs}, slices.DeleteFunc(slices.Clone(f.roots.states[rs.id]), func(other *rootState) bool { return other == rs })...)
}
