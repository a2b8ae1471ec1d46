package records

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// confirmFarms is how many farms' members must have seen a record at the origin
	// for this node to call it confirmed without having read it: one farm is one hand.
	confirmFarms = 3
	// sightFor is how old a sight may be to count for that.
	sightFor = time.Minute
	// membersAsked are asked when the origin does not answer: half of them are of this
	// farm, so the others can make up confirmFarms.
	membersAsked = 6
	// othersRate and othersBurst bound the looks at the origin that members ask this
	// node for: they read back what was written for them, which is rare.
	othersRate  = rate.Limit(10)
	othersBurst = 30
	// othersWait is when a member that had a name looked for is told that it is absent,
	// which is also what it hears of one that it may not read.
	othersWait = 2 * time.Second
)

// Question asks a member for a record.
type Question struct {
	Kind content.Kind `cbor:"kind"`
	Name string       `cbor:"name"`
	// Version is one that the asker has heard of: a member that knows only older ones
	// looks at the origin before it answers. 0 asks for what is held.
	Version uint64 `cbor:"version,omitempty"`
	// Lead asks one of the same farm that leads the name, see Names.near.
	Lead bool `cbor:"lead,omitempty"`
}

// Answer is what a member says: a sealed record, and a member's signed statement that
// it saw it at the origin; the member that answers, or one that it heard it from.
type Answer struct {
	Sealed    []byte `cbor:"record"`
	Statement []byte `cbor:"statement"`
	ETag      string `cbor:"etag"`
	// Absent and Age are of leads: the origin has no such record, and how long ago it
	// said so, or showed the one that it has.
	Absent bool          `cbor:"absent,omitempty"`
	Age    time.Duration `cbor:"age,omitempty"`
	// Who answered.
	Who trust.Identity `cbor:"-"`
}

// Submission asks a member to write a record over the one with that ETag.
type Submission struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
}

// witnessed is a record with the member that saw it at the origin.
type witnessed struct {
	known Known
	by    trust.Identity
	// late says that its signer was revoked since: it hangs on the time of the sight.
	late bool
}

func (n *Names) farm() string { return n.cfg.Signer.Identity().Farm }

// askMembers returns those answers that hold.
func (n *Names) askMembers(ctx context.Context, q Question, limit int) []witnessed {
	var out []witnessed
	for _, a := range n.cfg.Ask(ctx, q, limit) {
		w, err := n.open(q, a)
		if err != nil {
			n.disbelieve(q, a, err)
			continue
		}
		out = append(out, w)
	}
	return slices.DeleteFunc(out, func(w witnessed) bool { return w.late && !n.attested(w, out) })
}

func (n *Names) disbelieve(q Question, a Answer, err error) {
	n.refused.Inc()
	n.cfg.Log.Warn("a member's answer is not believed", "member", a.Who.Key, "farm", a.Who.Farm, "kind", q.Kind, "name", q.Name, "err", err)
}

// attested reports whether a record of a signer that was revoked since is known to be
// from before: by this node, on the word of its own farm, or of enough others. A single
// one may be the friend of the revoked.
func (n *Names) attested(w witnessed, all []witnessed) bool {
	if k, ok := n.Held(w.known.Kind, w.known.Name); ok && k.Commit == w.known.Commit {
		return true
	}
	farms := map[string]bool{}
	for _, other := range all {
		if other.known.Commit == w.known.Commit {
			farms[other.by.Farm] = true
		}
	}
	return farms[n.farm()] || len(farms) >= confirmFarms
}

// open checks a member's answer. Without somebody's word that it was at the origin a
// record is what its signer would like to be there.
func (n *Names) open(q Question, a Answer) (witnessed, error) {
	now := n.cfg.Now()
	st, err := n.cfg.Verifier.OpenStatement(a.Statement, now)
	if err != nil {
		return witnessed{}, err
	}
	seen := earlier(st.SeenAt, now)
	e, err := n.cfg.Verifier.Open(a.Sealed, seen, now)
	if err != nil {
		return witnessed{}, err
	}
	if e.Kind.Space() != q.Kind.Space() || e.Name != q.Name || st.Kind.Space() != q.Kind.Space() || st.Name != q.Name || st.Version != e.Version || st.Commit != e.Commit {
		return witnessed{}, fmt.Errorf("%w: asked for %s %q, got version %d of %s %q, and a statement on version %d of %s %.140q",
			content.ErrCorrupt, q.Kind, q.Name, e.Version, e.Kind, e.Name, st.Version, st.Kind, st.Name)
	}
	k, err := n.describe(catalog.Record{Envelope: e, Sealed: a.Sealed, ETag: a.ETag, SeenAt: seen})
	k.first, k.statement = seen, a.Statement
	_, since := n.cfg.Verifier.Open(a.Sealed, now, now)
	return witnessed{k, st.Signer, since != nil}, err
}

// choose returns what members of enough farms have just seen at the origin; else, of
// records that contradict each other, one of this node's own farm, and the highest
// version. It is confirmed in the first case only.
func choose(all []witnessed, farm string, now time.Time) (best Known, ok bool) {
	for _, w := range all {
		k, farms := w.known, map[string]bool{}
		for _, other := range all {
			if other.known.Commit != k.Commit {
				continue
			}
			k.first, k.SeenAt = earlier(k.first, other.known.first), later(k.SeenAt, other.known.SeenAt)
			if now.Sub(other.known.SeenAt) <= sightFor {
				farms[other.by.Farm] = true
			}
		}
		if k.Confirmed = len(farms) >= confirmFarms; k.Confirmed {
			k.agreed = now
		}
		if !ok || rank(k, farm, best) > 0 {
			best, ok = k, true
		}
	}
	return best, ok
}

// rank compares what two answers are worth.
func rank(a Known, farm string, b Known) int {
	truth := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	own := func(k Known) int { return truth(k.Farm == "" || k.Farm == farm) }
	return cmp.Or(cmp.Compare(truth(a.Confirmed), truth(b.Confirmed)), cmp.Compare(own(a), own(b)), cmp.Compare(a.Version, b.Version))
}

// Answer answers another member, or a stranger: with what is known of a name, and the
// word of a member that saw it at the origin, this one's own where it did. To those who
// may not read it, it is absent.
func (n *Names) Answer(ctx context.Context, from trust.Identity, q Question) (Answer, error) {
	if q.Lead && from.Role.IsMember() && from.Farm == n.farm() && q.Kind.CheckName(q.Name) == nil {
		return n.lead(ctx, from, q)
	}
	absent := notFound(q.Kind, q.Name)
	k, ok := n.Held(q.Kind, q.Name)
	look := !ok || !from.MayRead(k.Scope) || k.Version < q.Version || k.read.IsZero()
	if q.Version > 0 && look && from.Role.IsMember() && q.Kind.CheckName(q.Name) == nil && n.others.AllowN(n.cfg.Now(), 1) {
		wait, cancel := context.WithTimeout(ctx, othersWait)
		defer cancel()
		if _, err := n.look(wait, q.Kind, q.Name, n.cfg.Now(), func(error) {}); err == nil {
			k, ok = n.Held(q.Kind, q.Name)
		}
		if !ok || !from.MayRead(k.Scope) {
			<-wait.Done()
		}
	}
	if !ok || !from.MayRead(k.Scope) {
		return Answer{}, absent
	}
	return n.vouch(k)
}

// vouch adds the word of who saw a record at the origin.
func (n *Names) vouch(k Known) (Answer, error) {
	a := Answer{Sealed: k.Sealed, Statement: k.statement, ETag: k.ETag}
	if k.read.IsZero() {
		return a, nil
	}
	var err error
	a.Statement, err = n.cfg.Signer.State(trust.Statement{Kind: k.Kind, Name: k.Name, Version: k.Version, Commit: k.Commit, SeenAt: k.read})
	return a, err
}

const (
	// strangersRate and strangersBurst bound the names that strangers have this node
	// look for: the origin's requests are the operator's, who pays for them. Beyond it
	// they get what is known.
	strangersRate  = rate.Limit(5)
	strangersBurst = 20
	// strangersWait is when a stranger is told of a name that it is absent, whatever
	// was found and however soon: deleted, private and never made take as long.
	strangersWait = time.Second
	// deniedMax bounds the names that strangers were told of.
	deniedMax = 4096
)

// strangers answers those who proved nothing, out of a budget of their own.
type strangers struct {
	budget  *rate.Limiter
	flights singleflight.Group

	mu     sync.Mutex // guards denied
	denied lately     // what strangers were not shown
}

func (s *strangers) deny(id string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied.add(id, now, deniedMax)
}

func (s *strangers) isDenied(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.denied.has(id, now)
}

// lately is when names were looked for in vain.
type lately map[string]time.Time

// add keeps at most limit names: to forget the others costs no more than looks.
func (l lately) add(id string, at time.Time, limit int) {
	if len(l) >= limit {
		clear(l)
	}
	l[id] = at
}

func (l lately) has(id string, now time.Time) bool { return now.Sub(l[id]) < freshFor }

func isPublic(k Known) bool { return k.Scope.IsPublic() && !k.Tombstone }

// public returns what a name stands for to a stranger. Whatever is not public is absent
// in the same words and the same time: whether a look is made, and how long it takes,
// hangs on what strangers asked before, and on nothing that only members may know.
func (n *Names) public(ctx context.Context, kind content.Kind, name string) (Known, error) {
	if err := kind.CheckName(name); err != nil {
		return Known{}, err
	}
	absent := fmt.Errorf("%q: %w", name, content.ErrNotFound)
	if kind.Space() != content.KindImage { // of no other kind is anything public
		return Known{}, absent
	}
	now, id := n.cfg.Now(), key(kind, name)
	k, fresh, _ := n.recent(kind, name)
	shown := isPublic(k)
	switch {
	case shown && fresh:
		return k, nil
	case !shown && n.strangers.isDenied(id, now):
		return Known{}, absent
	case !n.strangers.budget.AllowN(now, 1):
		if shown {
			return k, nil
		}
		return Known{}, absent
	}
	k, err := shared(ctx, &n.strangers.flights, id, func(ctx context.Context) (Known, error) { return n.lookOpenly(ctx, kind, name), nil })
	if err == nil && !isPublic(k) {
		return Known{}, absent
	}
	return k, err
}

// lookOpenly returns what is public as soon as it is found, and else nothing when the
// wait is over. The operator hears of no failure that a stranger met.
func (n *Names) lookOpenly(ctx context.Context, kind content.Kind, name string) Known {
	over := time.After(strangersWait)
	found := make(chan Known, 1)
	go func() {
		k, fresh, _ := n.recent(kind, name)
		if !fresh {
			k, _ = n.look(ctx, kind, name, n.cfg.Now().Add(-freshFor), func(error) {}) // no other member works for strangers
		}
		found <- k
	}()
	select {
	case k := <-found:
		if isPublic(k) {
			return k
		}
		<-over
	case <-over:
	}
	k, _ := n.Held(kind, name) // while the origin is slow, what was public last
	if !isPublic(k) {
		n.strangers.deny(key(kind, name), n.cfg.Now())
	}
	return k
}
