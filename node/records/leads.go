package records

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// leadsTimeout bounds the question to the leads of a name: they read it at the origin,
	// within lookupTimeout, and keep it on a disk that may be busy. One that is silent is
	// given up much sooner, by the exchange.
	leadsTimeout = 10 * time.Second
	// leadsRate and leadsBurst bound the reads of the origin for members of this farm that
	// ask it as the lead: each may be made to ask for names that nobody has. Beyond it who
	// asks reads for itself.
	leadsRate  = rate.Limit(200)
	leadsBurst = 2000
	// anewAfter is how old this node's word on a name may be for one that has heard of a
	// later version: who makes that up has it read once in so long, and one that is right
	// reads for itself, where not another lead has it.
	anewAfter = time.Second
)

// near looks for a name as some seconds old will do: the leads of the farm know it, else
// the origin is asked, or members.
//
// A lead's word is what it has read at the origin itself, on a connection of its own. Two
// of the farm that say the same are believed as if it had been read here, so that a farm
// reads a name twice however many it has; one alone is not, or it could pass off an older
// record. It stays hearsay: what the origin said to this node is not moved by it, and
// where it is older or in doubt, or leads differ, this node reads for itself. So it does
// before anything that can't be undone, see Lookup, and as soon as the origin is away it
// counts as confirmed no more.
//
// One that has heard of a later version, as the question says, takes none that is older
// than anewAfter for an answer.
func (n *Names) near(ctx context.Context, q Question, lost func(error)) (Known, error) {
	return shared(ctx, &n.flights, fmt.Sprintf("near %d %s", q.Version, key(q.Kind, q.Name)), func(ctx context.Context) (Known, error) {
		k, ok, err := n.recent(q.Kind, q.Name)
		old := freshFor
		if k.Version < q.Version {
			ok, old = false, anewAfter
		}
		if !ok {
			k, ok, err = n.ofLeads(ctx, q)
		}
		if !ok {
			k, err = n.look(ctx, q.Kind, q.Name, n.cfg.Now().Add(-old), lost)
		}
		return k, err
	})
}

// word is what a lead has answered.
type word struct {
	plan.Event
	known Known
	read  time.Time // when the lead had it from the origin, by this node's clock
}

// ofLeads carries out what the planner says; ok is false where this node has to read for
// itself.
func (n *Names) ofLeads(ctx context.Context, q Question) (k Known, ok bool, err error) {
	if n.cfg.Think == nil || n.inDoubt(key(q.Kind, q.Name)) {
		return Known{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, leadsTimeout)
	defer cancel()
	var look *plan.Look
	var acts []plan.Action
	step := func(e plan.Event) {
		n.cfg.Think(func(m *plan.Member) {
			if look == nil {
				look = m.Look(key(q.Kind, q.Name))
			}
			e.Look = look
			acts = m.Step(n.cfg.Now(), e)
		})
	}
	step(plan.Event{Kind: plan.Start})
	heard := q.Version
	said, answers := map[plan.Peer]word{}, make(chan word)
	tick := time.Tick(plan.LookBeside)
	for {
		for _, a := range acts {
			switch a.Kind {
			case plan.Ask:
				q.Version = max(a.Version, heard)
				go n.askLead(ctx, a.Peer, q, answers)
			case plan.Done:
				return n.agreed(q, said, a.Peer)
			default:
				return Known{}, false, nil
			}
		}
		select {
		case t := <-answers:
			said[t.Peer] = t
			step(t.Event)
		case <-tick:
			step(plan.Event{Kind: plan.Woke})
		case <-ctx.Done():
			return Known{}, false, nil
		}
	}
}

// inDoubt reports whether only the origin itself can say what a name stands for.
func (n *Names) inDoubt(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entry(id)
	return e.taken != nil || !e.isEmpty() && e.answer().Doubt != ""
}

// askLead asks one, until ctx ends. Its word counts only as its own, by a signer that
// nobody has revoked.
func (n *Names) askLead(ctx context.Context, p plan.Peer, q Question, answers chan<- word) {
	t := word{Event: plan.Event{Kind: plan.Answered, Peer: p}}
	a, err := n.cfg.AskLead(ctx, p, q)
	t.read = n.cfg.Now().Add(-max(a.Age, 0))
	var w witnessed
	switch {
	case err != nil:
		t.Why = err.Error()
	case a.Absent:
		t.Saw = &plan.Sight{}
	case len(a.Sealed) > 0:
		if w, err = n.open(q, a); err == nil && (w.late || w.by != a.Who) {
			err = errors.New("it is no word of its own, or the signer was revoked")
		}
		if err == nil {
			t.known, t.Saw = w.known, &plan.Sight{Version: w.known.Version, Commit: w.known.Commit}
		} else {
			n.disbelieve(q, a, err)
		}
	}
	select {
	case answers <- t:
	case <-ctx.Done():
	}
}

// agreed takes what leads say as one with that peer: as old as the oldest of their words,
// which has to be fresh still.
func (n *Names) agreed(q Question, said map[plan.Peer]word, by plan.Peer) (Known, bool, error) {
	now, id, best := n.cfg.Now(), key(q.Kind, q.Name), said[by]
	for _, t := range said {
		if t.Saw != nil && *t.Saw == *best.Saw {
			best.read = earlier(best.read, t.read)
			best.known.first = earlier(best.known.first, t.known.first)
		}
	}
	at := best.read
	if now.Sub(at) > freshFor {
		return Known{}, false, nil
	}
	if best.Saw.Version == 0 {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !n.entry(id).isEmpty() {
			return Known{}, false, nil
		}
		n.unseen.add(id, at, absentMax)
		return Known{}, true, notFound(q.Kind, q.Name)
	}
	k := best.known
	k.Confirmed, k.SeenAt = true, earlier(k.SeenAt, at)
	e := n.change(id, func(e entry) entry {
		if e.taken != nil || !e.isEmpty() && e.answer().Doubt != "" { // it came into doubt meanwhile
			return e
		}
		if e = e.hears(k, now); e.answer().Commit == k.Commit {
			e.checked = at
		}
		return e
	})
	if e.isEmpty() {
		return Known{}, false, nil
	}
	stands := e.answer()
	return stands, stands.Commit == k.Commit && stands.Doubt == "", nil
}

// lead answers a member of this farm that takes this node for a lead of the name: with
// what it reads at the origin now, or has within freshFor, and no hearsay; the zero Answer
// where it can't. What the asker may not read is absent.
func (n *Names) lead(ctx context.Context, from trust.Identity, q Question) (a Answer, err error) {
	since := n.cfg.Now().Add(-freshFor)
	k, at, ok := n.ownWord(q.Kind, q.Name, since)
	if ok && k.Version < q.Version {
		since = n.cfg.Now().Add(-anewAfter)
		ok = at.After(since)
	}
	if c := n.cfg.Reader(); !ok && c != nil && n.leads.AllowN(n.cfg.Now(), 1) {
		_, err := n.read(ctx, c, q.Kind, q.Name, since)
		if err != nil && !errors.Is(err, content.ErrNotFound) {
			n.cfg.Lost(err)
		}
		k, at, ok = n.ownWord(q.Kind, q.Name, since)
	}
	switch {
	case !ok:
		return Answer{}, nil
	case k.Version > 0 && from.MayRead(k.Scope):
		a, err = n.vouch(k)
	default:
		a.Absent = true
	}
	a.Age = max(0, n.cfg.Now().Sub(at))
	return a, err
}
