package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// TestCallersThatGoAway say nothing of the origin; one that does not answer is looked
// at, and is well until that look says otherwise.
func TestCallersThatGoAway(t *testing.T) {
	o := newOrigin(Config{Log: slog.New(slog.DiscardHandler)}, nil, nil, nil)
	o.settle(nil)
	for _, err := range []error{
		fmt.Errorf("read: %w: %w", content.ErrUnavailable, context.Canceled),
		fmt.Errorf("read: %w", content.ErrNotFound),
		fmt.Errorf("read: %w", bucket.ErrSlowDown),
	} {
		if o.lost(err); len(o.doubt) > 0 {
			t.Errorf("after %v it is looked at", err)
		}
	}
	if o.lost(fmt.Errorf("read: %w", content.ErrUnavailable)); len(o.doubt) != 1 || o.view().State != originOK {
		t.Errorf("looked at: %d, %+v", len(o.doubt), o.view())
	}
}

// TestTheFirstFailure of whoever uses the bucket has the origin looked at, while that one
// still tries again.
func TestTheFirstFailure(t *testing.T) {
	var o *origin
	store := mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if c.Op != mem.Put {
			return mem.Fault{}
		}
		if len(o.doubt) > 0 { // the first has failed
			return mem.Fault{Err: content.ErrForbidden}
		}
		return mem.Fault{Err: content.ErrUnavailable}
	}})
	o = foundedAt(t, store)
	b, err := o.opened(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := bucket.ReadAll(t.Context(), b, "none", 1); len(o.doubt) > 0 {
		t.Errorf("what is not there is a reason to look: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	_, err = b.Put(ctx, "journals/a", bucket.Bytes(nil), bucket.Condition{})
	if len(o.doubt) != 1 || store.Count(mem.Put) != 2 {
		t.Errorf("after %d tries it is to be looked at %d times: %v", store.Count(mem.Put), len(o.doubt), err)
	}
}

// TestASickStoreIsBack once it can be read, when it was away: that writing is safe there was
// found out before, and can't be again while it loses replies. One that throttles is not.
func TestASickStoreIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fault func(mem.Call) mem.Fault
		o := foundedAt(t, mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
			if fault == nil {
				return mem.Fault{}
			}
			return fault(c)
		}}))
		looks := func(want string) {
			t.Helper()
			if err := o.look(t.Context()); o.view().State != want {
				t.Fatalf("%+v, want %s: %v", o.view(), want, err)
			}
		}
		loses := func(c mem.Call) mem.Fault {
			if c.Op == mem.Put {
				return mem.Fault{Err: bucket.ErrUnknown, Applied: true}
			}
			return mem.Fault{}
		}
		fault = loses
		looks(originUnreachable) // nobody knows yet
		fault = nil
		looks(originOK)
		fault = func(mem.Call) mem.Fault { return mem.Fault{Err: bucket.ErrSlowDown} }
		looks(originOK)
		var busy []*budget.Request // with what this node asks itself
		for range budget.InFlightDefault {
			r, err := o.budget.Take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			busy = append(busy, r)
		}
		looks(originOK)
		for _, r := range busy {
			r.End()
		}
		fault = func(mem.Call) mem.Fault { return mem.Fault{Err: content.ErrUnavailable} }
		looks(originUnreachable)
		fault = loses
		looks(originOK)
	})
}

// TestWhatLiesInTheOrigin is no store beside it.
func TestWhatLiesInTheOrigin(t *testing.T) {
	o := foundedAt(t, mem.New(t, mem.Config{}))
	o.url = "s3://bucket/mesh"
	if _, err := o.beside(t.Context(), "s3://bucket/mesh/copy"); !errors.Is(err, content.ErrInvalid) {
		t.Error(err)
	}
}

// foundedAt is the origin of the founder of a mesh.
func foundedAt(t *testing.T, store bucket.Bucket) *origin {
	t.Helper()
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "alpha"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	member, err := membership.Open(membership.Config{Identity: key, Now: time.Now}, membership.State{Mesh: mesh.Public(), Chain: chain, Founder: true, Origin: "a store"})
	if err != nil {
		t.Fatal(err)
	}
	o := newOrigin(Config{Log: slog.New(slog.DiscardHandler), OpenOrigin: func(context.Context, string) (bucket.Bucket, *bucket.Metrics, error) {
		return store, nil, nil
	}}, member, nil, func() {})
	o.url = "a store"
	return o
}
