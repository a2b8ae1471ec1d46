package fetch_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// unplugged is a member that may fall silent, as one does whose cable was pulled.
type unplugged struct {
	exchange.Server
	silent atomic.Bool
}

func (u *unplugged) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	if u.silent.Load() {
		<-ctx.Done()
		return
	}
	u.Server.Want(ctx, from, req, w)
}

// TestAnUnpluggedMemberStallsAReaderOnce: a guest reads run after run of which a silent
// member leads half, from the origin, for longer than the member is passed over at first;
// then the member is back, and asked again.
func TestAnUnpluggedMemberStallsAReaderOnce(t *testing.T) {
	const stall, pace = 800 * time.Millisecond, 150 * time.Millisecond
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 960})
	u := &unplugged{}
	other := w.enter("north", trust.RoleNode, nil, func(s exchange.Server) exchange.Server { u.Server = s; return u })
	other.open(im)
	m := w.patient(time.Minute)
	g := m.open(im)
	var firsts []uint64 // a chunk of each run
	var runs []pack.Run
	for i, b := range im.chunks {
		at, err := m.Locate(t.Context(), im.id, uint64(i))
		if w.check(err); b != nil && !slices.Contains(runs, at.Run()) {
			runs, firsts = append(runs, at.Run()), append(firsts, uint64(i))
		}
	}
	var stalls, longest time.Duration
	read := func(index uint64) {
		began := time.Now()
		w.check(g.ReadChunk(t.Context(), index, 0, make([]byte, content.ChunkSizeDefault)))
		if took := time.Since(began); took > stall {
			stalls += took
			longest = max(longest, took)
		}
		<-time.After(pace)
	}
	u.silent.Store(true)
	began := time.Now()
	silent := len(firsts) * 4 / 5
	for _, index := range firsts[:silent] {
		read(index)
	}
	t.Logf("silent for %s: stalls of %s in all, the longest of %s", time.Since(began).Round(time.Second), stalls, longest)
	if most := 3 * time.Second; stalls > most {
		t.Errorf("the reader stalled for %s, want %s at most", stalls, most)
	}
	u.silent.Store(false)
	stalls = 0
	for _, index := range firsts[silent:] {
		read(index)
	}
	if stalls > 0 {
		t.Errorf("the member is back, and the reader stalled for %s", stalls)
	}
	farm := []plan.Peer{plan.Peer(m.id), plan.Peer(other.id)}
	led := firsts[slices.IndexFunc(runs, func(r pack.Run) bool { return plan.Rank(fetch.RunKey(r), farm)[0] == farm[1] })]
	before := m.Bytes().Farm
	w.eventually("the member is asked again", func() bool {
		m.cache.Evict(1 << 30)
		w.check(g.ReadChunk(t.Context(), led, 0, make([]byte, 1)))
		return m.Bytes().Farm > before
	})
}
