package records

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
)

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
	over := time.NewTimer(strangersWait)
	defer over.Stop()
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
		<-over.C
	case <-over.C:
	}
	k, _ := n.Held(kind, name) // while the origin is slow, what was public last
	if !isPublic(k) {
		n.strangers.deny(key(kind, name), n.cfg.Now())
	}
	return k
}
