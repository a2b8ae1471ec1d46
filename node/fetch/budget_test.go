package fetch_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// lead is a member that reads the origin for others, within a budget, in a bubble: nobody
// connects with it.
type lead struct {
	*fetch.Fetcher
	w *world
}

// Live returns the lead: it sees nobody else who could read.
func (l *lead) Live() []peer.ID { return []peer.ID{"lead"} }

// newLead has it run for the test.
func newLead(w *world, limits budget.Limits) *lead {
	l := &lead{w: w}
	held, err := cache.Open(cache.Config{Dir: w.t.TempDir(), Quota: 1 << 30, ScrubRate: -1})
	w.check(err)
	origin := pack.NewReader(bucket.Limit(w.bucket, budget.New(limits)))
	l.Fetcher, err = fetch.New(fetch.Config{
		Cache: held, Members: l, Origin: func() fetch.Origin { return origin }, Self: "lead",
		Identity: trust.Identity{Role: trust.RoleNode, Farm: "north"}, Verifier: trust.NewVerifier(w.mesh.Public()),
	})
	w.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		w.check(<-ended)
		w.check(held.Close())
	})
	return l
}

// answer counts the bytes that a member is sent.
type answer struct {
	exchange.Responder // what is not expected
	bytes              atomic.Int64
}

func (a *answer) Data(_ context.Context, _ uint64, o exchange.Object) error {
	a.bytes.Add(int64(len(o.Body)))
	return nil
}
func (a *answer) Room(size int) []byte   { return make([]byte, 0, size) }
func (a *answer) Absent(...uint64) error { return nil } // it has had enough
func (a *answer) Queued(int) error       { return nil }
func (a *answer) Progress() error        { return nil }

// want asks for a chunk as a member does.
func (l *lead) want(ctx context.Context, from string, im *image, index uint64, p exchange.Priority, a *answer) {
	l.Want(ctx, exchange.Peer{ID: peer.ID(from), Identity: trust.Identity{Role: trust.RoleNode, Farm: "north"}},
		exchange.Request{Root: im.id, Indexes: []uint64{index}, Priority: p, Fetch: true}, a)
}

// TestMembersShareALeadsBudget: eight members have one read for them, each a part of an
// image, some of them much at once and some little. While all have something to wait for,
// each has as much of what the lead may read as the next, and a guest of the lead's own
// waits for none of them.
func TestMembersShareALeadsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const members, each, second = 8, 100, 16 // chunks
		w := newWorld(t)
		im := w.publish(imageConfig{chunks: members*each + 1, dense: true})
		l := newLead(w, budget.Limits{Bytes: second * content.ChunkSizeDefault})
		g, err := l.Learn(im.Root)
		w.check(err)
		ctx, cancel := context.WithCancel(t.Context())
		var answers [members]answer
		var work sync.WaitGroup
		for m := range members {
			var next atomic.Int64
			for range 3 + 3*m { // one that asks for one at a time does not always wait
				work.Go(func() {
					for i := next.Add(1) - 1; i < each && ctx.Err() == nil; i = next.Add(1) - 1 {
						l.want(ctx, fmt.Sprint("member ", m), im, uint64(m*each)+uint64(i), exchange.PriorityGuest, &answers[m])
					}
				})
			}
		}
		<-time.After(time.Second) // what was saved up is spent
		for m := range members {
			answers[m].bytes.Store(0)
		}
		<-time.After(each * members / second / 2 * time.Second) // as long as half of it takes
		begun := time.Now()
		w.check(readOne(t.Context(), g, im, members*each, make([]byte, content.ChunkSizeDefault)))
		if took := time.Since(begun); took > 2*time.Second { // a read for each asker, twice; all that wait take six
			t.Errorf("a guest waited %s", took)
		}
		sum := int64(0)
		for m := range members {
			sum += answers[m].bytes.Load()
		}
		for m := range members {
			if n := answers[m].bytes.Load(); n < sum/members*8/10 || n > sum/members*12/10 {
				t.Errorf("member %d was sent %d bytes, all others on average %d", m, n, sum/members)
			}
		}
		cancel()
		work.Wait()
	})
}

// TestGuestsHurryWhatIsRead: a guest comes to need what is to be read for a member's prefetch,
// which waits for its turn behind much else: then it waits no more.
func TestGuestsHurryWhatIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const runs = 20
		w := newWorld(t)
		im := w.publish(imageConfig{chunks: runs * content.RunSize / content.ChunkSizeDefault, dense: true})
		l := newLead(w, budget.Limits{Requests: 1})
		g, err := l.Learn(im.Root)
		w.check(err)
		ctx, cancel := context.WithCancel(t.Context())
		var a answer
		var work sync.WaitGroup
		p := make([]byte, content.ChunkSizeDefault)
		w.check(readOne(t.Context(), g, im, 0, p)) // and the map
		last := 1
		for i := last; i < len(im.chunks); i += content.RunSize / content.ChunkSizeDefault {
			last = i
			work.Go(func() { l.want(ctx, "member", im, uint64(i), exchange.PriorityPrefetch, &a) })
			synctest.Wait()
		}
		<-time.After(time.Second)
		begun := time.Now()
		w.check(readOne(t.Context(), g, im, last, p))
		if took := time.Since(begun); took > 3*time.Second {
			t.Errorf("a guest waited %s", took)
		}
		cancel()
		work.Wait()
	})
}
