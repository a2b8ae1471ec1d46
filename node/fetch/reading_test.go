package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/spans"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// TestHitAllocatesNothing: a read of what is here neither allocates nor waits, traced or not.
func TestHitAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 16})
	for _, traced := range []*spans.Spans{nil, spans.New(noop.NewTracerProvider().Tracer(""))} {
		hit(t, w, w.join("north", func(c *fetch.Config) { c.Spans = traced }).open(im), im)
	}
}

func hit(t *testing.T, w *world, g *fetch.Image, im *image) {
	if g.TryReadChunk(0, 0, make([]byte, 4096)) {
		t.Fatal("a chunk that is not here was read")
	}
	w.check(readAll(t.Context(), g, im))
	p := make([]byte, 4096)
	for _, index := range []uint64{0, 3} { // a chunk and a hole
		w.eventually("what was read is in the cache", func() bool { return g.TryReadChunk(index, 8192, p) })
		if n := testing.AllocsPerRun(100, func() {
			if !g.TryReadChunk(index, 8192, p) {
				t.Error("a chunk that is here was not read")
			}
		}); n > 0 {
			t.Errorf("chunk %d: %v allocations", index, n)
		}
		if n := testing.AllocsPerRun(100, func() { w.check(g.ReadChunk(t.Context(), index, 8192, p)) }); n > 0 {
			t.Errorf("chunk %d: %v allocations of a read that may wait", index, n)
		}
	}
	b := g.Bytes()
	if b.Cache < 100*4096 {
		t.Errorf("bytes by source: %v", b)
	}
}

// TestReadersShareFlights: who reads one chunk at once waits for one flight, and
// the cancellation of some ends nothing for the others.
func TestReadersShareFlights(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 16})
	m := w.join("north", nil)
	g := m.open(im)
	gate := make(chan struct{})
	w.check(g.ReadChunk(t.Context(), 3, 0, make([]byte, 1))) // a hole: brings in the map
	w.hooks.gate.Store(&gate)
	w.forget()
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- g.ReadChunk(ctx, 0, 0, make([]byte, 1)) }()
	w.eventually("it is on its way", func() bool { return m.Flights() > 0 })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := readOne(t.Context(), g, im, 0, make([]byte, content.ChunkSizeDefault)); err != nil {
				t.Error(err)
			}
		})
	}
	cancel(errCancelled)
	if err := <-gone; !errors.Is(err, errCancelled) {
		t.Errorf("a cancelled read: %v", err)
	}
	close(gate)
	wg.Wait()
	if n := w.gets.Load(); n != 1 {
		t.Errorf("%d requests to the origin, want 1", n)
	}
}

// TestUnwantedPrefetchEnds: a prefetch that was cancelled leaves nothing behind.
func TestUnwantedPrefetchEnds(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 60}) // all under way at once
	lead, m := w.join("north", nil), w.join("north", nil)
	lead.open(im)
	g := m.open(im)
	w.check(g.ReadChunk(t.Context(), 3, 0, make([]byte, 1)))
	gate := make(chan struct{})
	w.hooks.gate.Store(&gate)
	defer close(gate)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Warm(ctx, nil) }()
	w.eventually("both are at it", func() bool { return m.Flights() > 0 && lead.Flights() > 0 })
	cancel(errCancelled)
	if err := <-ended; !errors.Is(err, errCancelled) {
		t.Errorf("Warm: %v", err)
	}
	w.eventually("nothing is on its way", func() bool { return m.Flights() == 0 && lead.Flights() == 0 })
}

// TestGuestOvertakesPrefetch: a guest does not wait for what prefetch asked for
// at its own pace.
func TestGuestOvertakesPrefetch(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	members := w.farm("north", 3)
	w.warmAll(im, members[:2]...)
	g := members[2].open(im)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	warm := make(chan error, 1)
	go func() { warm <- g.Warm(ctx, nil) }()
	p := make([]byte, content.ChunkSizeDefault)
	for i := imageChunks - 1; i >= 0; i-- {
		w.check(readOne(t.Context(), g, im, i, p))
	}
	w.check(<-warm)
}

// TestFullCacheStillReads: bytes reach the reader although nothing is kept.
func TestFullCacheStillReads(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 24})
	var full *cache.Cache
	m := w.join("north", func(cfg *fetch.Config) {
		c, err := cache.Open(cache.Config{Dir: t.TempDir(), Quota: 256 << 20, ScrubRate: -1})
		w.check(err)
		cfg.Cache, full = c, c
	})
	t.Cleanup(func() { full.Close() })
	const fillers = 256 << 20 / content.ChunkSizeDefault // all that the quota holds
	var names []content.CID
	for i := range fillers {
		names = append(names, content.Seal(randomChunk(9, i)).CID())
	}
	w.check(full.Pin("all", 0, slices.Values(names)))
	for i := range fillers {
		if full.Put(content.Seal(randomChunk(9, i)), cache.ReachMesh) != nil {
			break
		}
	}
	w.check(readAll(t.Context(), m.open(im), im))
	if id := content.Seal(im.chunks[0]).CID(); full.Has(id) {
		t.Error("the cache had room")
	}
}

// damaged is an Origin whose frames come damaged some times.
type damaged struct {
	fetch.Origin
	mu    sync.Mutex // guards times
	times int
}

func (d *damaged) Stream(ctx context.Context, frames []pack.Extent, take func(int, content.Verified)) error {
	d.mu.Lock()
	bad := d.times > 0
	if bad {
		d.times--
	}
	d.mu.Unlock()
	err := d.Origin.Stream(ctx, frames, func(i int, v content.Verified) {
		if !bad || i > 0 {
			take(i, v)
		}
	})
	if bad && err == nil {
		err = fmt.Errorf("read %s: %w: it hashes to something else", frames[0].Location, content.ErrCorrupt)
	}
	return err
}

// TestDamagedPack: a frame that came damaged is read once more; one that stays so
// is an error that says where it lies.
func TestDamagedPack(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 16})
	d := &damaged{Origin: w.reader}
	m := w.join("north", func(cfg *fetch.Config) { cfg.Origin = func() fetch.Origin { return d } })
	g := m.open(im)
	d.times = 1
	p := make([]byte, content.ChunkSizeDefault)
	w.check(readOne(t.Context(), g, im, 3, p))
	d.mu.Lock()
	d.times = 1
	d.mu.Unlock()
	w.check(readOne(t.Context(), g, im, 0, p))

	w.eventually("it is kept", func() bool { return m.Flights() == 0 })
	m.cache.Evict(1 << 30)
	d.mu.Lock()
	d.times = 1 << 20
	d.mu.Unlock()
	err := g.ReadChunk(t.Context(), 0, 0, p)
	if !errors.Is(err, content.ErrCorrupt) || !strings.Contains(fmt.Sprint(err), im.Head.Node.Pack.Scope().String()+"/") {
		t.Errorf("a damaged pack: %v", err)
	}
}

// TestMovedPack: a chunk whose pack was rewritten is found where it went.
func TestMovedPack(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 16})
	mv := &moved{Reader: w.reader, lost: pack.ID("mesh/2020010100-00000000000000000000000000000000")}
	m := w.join("north", func(cfg *fetch.Config) { cfg.Origin = func() fetch.Origin { return mv } })
	w.check(readAll(t.Context(), m.open(im), im))
	if mv.asked == 0 {
		t.Error("nobody asked where the frames went")
	}
}

// moved is an Origin that has lost its packs, and knows where their frames went.
type moved struct {
	*pack.Reader
	lost  pack.ID
	mu    sync.Mutex // guards what follows
	asked int
	found map[content.CID]bool
}

func (m *moved) Stream(ctx context.Context, frames []pack.Extent, take func(int, content.Verified)) error {
	m.mu.Lock()
	known := true
	for _, e := range frames {
		known = known && m.found[e.CID]
	}
	m.mu.Unlock()
	if !known {
		return fmt.Errorf("read pack %s: %w", frames[0].Pack, content.ErrNotFound)
	}
	return m.Reader.Stream(ctx, frames, take)
}

func (m *moved) Relocate(_ context.Context, e pack.Extent) (pack.Extent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked++
	if m.found == nil {
		m.found = map[content.CID]bool{}
	}
	m.found[e.CID] = true
	return e, nil
}

// TestFailureListsSources: when nobody has it, the error says who was asked.
func TestFailureListsSources(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 8})
	members := w.farm("north", 2)
	for _, m := range members {
		m.open(im)
	}
	w.hooks.down.Store(true)
	p := make([]byte, 1)
	err := members[0].open(im).ReadChunk(t.Context(), 0, 0, p)
	if !errors.Is(err, content.ErrUnavailable) {
		t.Fatalf("want ErrUnavailable: %v", err)
	}
	for _, source := range []string{"cache: absent", members[1].id.String(), "origin: not reachable"} {
		if !strings.Contains(err.Error(), source) {
			t.Errorf("the error does not name %q: %v", source, err)
		}
	}
	w.hooks.down.Store(false)
	w.check(members[0].open(im).ReadChunk(t.Context(), 0, 0, p))
}

// TestReadaheadFollowsAGuest: a guest that reads on finds most chunks here.
func TestReadaheadFollowsAGuest(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	w.warmAll(im, w.farm("north", 1)...)
	m := w.join("north", nil)
	m.origin.Store(false) // which a guest turns to when the machine is late
	g := m.open(im)
	p := make([]byte, content.ChunkSizeDefault)
	for i := range im.chunks {
		w.check(readOne(t.Context(), g, im, i, p))
		w.eventually("readahead has landed", func() bool { return m.Flights() == 0 })
	}
	b := g.Bytes()
	if hits := b.Cache / content.ChunkSizeDefault; hits < int64(im.stats.Chunks)*8/10 {
		t.Errorf("%d of %d chunks were here when the guest came", hits, im.stats.Chunks)
	}
	if b.Farm != int64(im.stats.RawBytes) {
		t.Errorf("%d bytes came from the farm, want each once: %d", b.Farm, im.stats.RawBytes)
	}
}

// lateMap is an Origin that holds requests for the map back once armed.
type lateMap struct {
	fetch.Origin
	armed, asked atomic.Bool
	free         chan struct{} // closed when they are let go
}

func (l *lateMap) Stream(ctx context.Context, frames []pack.Extent, take func(int, content.Verified)) error {
	if l.armed.Load() && frames[0].Raw != content.ChunkSizeDefault {
		l.asked.Store(true)
		select {
		case <-l.free:
		case <-ctx.Done():
		}
	}
	return l.Origin.Stream(ctx, frames, take)
}

// TestReadaheadCrossesALateMapNode: a guest that goes on while the next node of the map is
// under way is run ahead of behind it by all that it has gone on meanwhile.
func TestReadaheadCrossesALateMapNode(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves})
	late := &lateMap{Origin: w.reader, free: make(chan struct{})}
	m := w.join("north", func(cfg *fetch.Config) {
		cfg.Origin, cfg.Swarm = func() fetch.Origin { return late }, nil
	})
	g := m.open(im)
	p := make([]byte, content.ChunkSizeDefault)
	for i := range content.MapFanout {
		if i == twoLeaves+1 { // the first leaf is here
			late.armed.Store(true)
		}
		w.check(readOne(t.Context(), g, im, i, p))
	}
	w.eventually("the next map node is asked for", late.asked.Load)
	close(late.free)
	// The first step behind the border, of eight chunks, brings the rest of their run,
	// eleven, with it; what is behind that, the second.
	far := content.Sum(im.chunks[content.MapFanout+13])
	w.eventually("it is run ahead of by two steps", func() bool { return m.cache.Has(far) })
}
