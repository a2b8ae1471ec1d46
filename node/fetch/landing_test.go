package fetch_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// TestReadsWhileNothingCanBeWritten: who waits for bytes gets them though the disk takes
// none, and no flight is left behind: what was not kept is fetched again.
func TestReadsWhileNothingCanBeWritten(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 16})
	w.warmAll(im, w.farm("north", 1)...)
	m := w.join("north", nil)
	g := m.open(im)
	p := make([]byte, content.ChunkSizeDefault)
	w.check(readOne(t.Context(), g, im, 0, p))
	w.eventually("it has landed", func() bool { return m.Flights() == 0 })
	w.check(m.cache.Close())
	for range 2 {
		before := g.Bytes().Farm
		w.check(readAll(t.Context(), g, im))
		w.eventually("no flight is left behind", func() bool { return m.Flights() == 0 })
		if got := g.Bytes().Farm - before; got < int64(im.stats.RawBytes) {
			t.Errorf("%d bytes came from the farm, want all %d", got, im.stats.RawBytes)
		}
	}
}

// TestStopsWhileObjectsLand: a member that stops in the midst of what comes ends with it,
// and has kept nothing but what it asked for. TestMain looks for what goes on.
func TestStopsWhileObjectsLand(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	w.warmAll(im, w.farm("north", 1)...)
	for range 4 {
		m := w.join("north", nil)
		g := m.open(im)
		warm := make(chan error, 1)
		go func() { warm <- g.Warm(t.Context(), nil) }()
		w.eventually("some has come", func() bool { return m.Bytes().Farm > 0 })
		m.leave()
		<-warm
		if n := m.Flights(); n > 0 {
			t.Errorf("%d flights are left behind", n)
		}
	}
}

// spoiling is an Origin that spoils what is given back, for whoever still looks at it.
type spoiling struct {
	fetch.Origin
	freed *atomic.Int64
}

func (s spoiling) Free(v content.Verified) {
	clear(v.Bytes())
	s.freed.Add(1)
	s.Origin.Free(v)
}

// TestNobodyReadsWhatWasGivenBack: guests read what a warming brings in, and others ask for
// it, all at once; what nobody looks at is given back.
func TestNobodyReadsWhatWasGivenBack(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	var freed atomic.Int64
	var farm []*node
	for range 3 {
		farm = append(farm, w.join("north", func(cfg *fetch.Config) { cfg.Origin = func() fetch.Origin { return spoiling{w.reader, &freed} } }))
	}
	w.check(all(farm, func(m *node) error {
		g := m.open(im)
		var both errgroup.Group
		both.Go(func() error { return g.Warm(t.Context(), nil) })
		both.Go(func() error { return readAll(t.Context(), g, im) })
		return both.Wait()
	}))
	w.check(all(farm, func(m *node) error { return readAll(t.Context(), m.open(im), im) })) // of the cache
	if freed.Load() == 0 {
		t.Error("nothing was given back")
	}
}

// slowLink is a member whose every answer takes slowAnswer; it counts the objects.
type slowLink struct {
	exchange.Server
	sent atomic.Int64
}

const slowAnswer = 15 * time.Millisecond

func (s *slowLink) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	s.Server.Want(ctx, from, req, slowly{w, s})
}

type slowly struct {
	exchange.Responder
	of *slowLink
}

func (s slowly) Data(ctx context.Context, index uint64, o exchange.Object) error {
	late := time.NewTimer(slowAnswer)
	defer late.Stop()
	select {
	case <-late.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.of.sent.Add(1)
	return s.Responder.Data(ctx, index, o)
}

// TestEachByteComesOnce: over a slow link a guest's small reads have a chunk sent once,
// though readahead asks for it before and it is read again before it is on the disk; and
// a guest that jumps about has nothing else sent.
func TestEachByteComesOnce(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 120, dense: true})
	s := new(slowLink)
	w.warmAll(im, w.enter("north", trust.RoleNode, nil, func(of exchange.Server) exchange.Server { s.Server = of; return s }))
	const small, nodes = 16 << 10, 2 // of the map
	p := make([]byte, small)
	for name, step := range map[string]int{"on and on": 1, "far apart": 7} {
		m := w.join("north", nil)
		g := m.open(im)
		s.sent.Store(0)
		read := 0
		for i := 0; i < len(im.chunks); i += step {
			for off := 0; off < content.ChunkSizeDefault; off += small {
				if !g.TryReadChunk(uint64(i), off, p) {
					w.check(g.ReadChunk(t.Context(), uint64(i), off, p))
				}
				if string(p) != string(im.chunks[i][off:off+small]) {
					t.Fatalf("%s: chunk %d from %d on: other bytes", name, i, off)
				}
			}
			read++
		}
		w.eventually("all has landed", func() bool { return m.Flights() == 0 })
		if sent := s.sent.Load(); sent > int64(read+read/10+nodes) {
			t.Errorf("%s: %d objects were sent for %d chunks", name, sent, read)
		}
		m.leave()
	}
}
