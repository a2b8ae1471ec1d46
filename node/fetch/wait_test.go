package fetch_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

// patient starts a member whose guests wait.
func (w *world) patient(within time.Duration) *node {
	return w.join("north", func(cfg *fetch.Config) { cfg.IOTimeout = within })
}

// TestGuestsWaitForTheOrigin: while the origin is away nobody is told so who reads; its
// image says what is waited for. When it is back all come at once.
func TestGuestsWaitForTheOrigin(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 64})
	m := w.patient(time.Minute)
	g := m.open(im)
	w.hooks.down.Store(true)
	var reads sync.WaitGroup
	for i := range im.chunks {
		reads.Go(func() {
			if err := readOne(t.Context(), g, im, i, make([]byte, content.ChunkSizeDefault)); err != nil {
				t.Error(err)
			}
		})
	}
	w.eventually("all wait", func() bool { return g.Waiting().Reads == len(im.chunks) })
	if x := g.Waiting(); x.Since.IsZero() || x.Timeout != time.Minute || !strings.Contains(x.Why.Error(), "origin") {
		t.Errorf("%+v", x)
	}
	w.forget()
	w.hooks.down.Store(false)
	began := time.Now()
	m.OriginBack()
	reads.Wait()
	t.Logf("all came %s after the origin", time.Since(began))
	if x := g.Waiting(); x.Reads != 0 || x.Why != nil {
		t.Errorf("%+v", x)
	}
	w.copies(im, 1.02)
}

// TestGuestsWaitForAMember: what a member brings while the origin is away is used, though
// nobody says that anything is back.
func TestGuestsWaitForAMember(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 32})
	other := w.join("north", func(cfg *fetch.Config) { cfg.Swarm = nil }) // nobody finds it by a search
	w.warmAll(im, other)
	other.gone.Store(true)
	m := w.patient(time.Minute)
	g := m.open(im)
	w.hooks.down.Store(true)
	came := make(chan error, 1)
	go func() { came <- readAll(t.Context(), g, im) }()
	w.eventually("it waits", func() bool { return g.Waiting().Reads > 0 })
	other.gone.Store(false)
	w.check(<-came)
	if b := m.Bytes(); b.Origin != 0 || b.Farm == 0 {
		t.Errorf("bytes by source: %v", b)
	}
}

// TestAWaitEnds at the timeout, with its reason; at once with what the guest reads from,
// or with the node; and prefetch does not wait at all.
func TestAWaitEnds(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 8})
	w.hooks.down.Store(true)
	read := func(ctx context.Context, g *fetch.Image) chan error {
		out := make(chan error, 1)
		go func() { out <- g.ReadChunk(ctx, 0, 0, make([]byte, 1)) }()
		return out
	}
	err := <-read(t.Context(), w.patient(2*plan.SwarmWait).open(im)) // a climb, and a bit
	if !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "within 5s") || !strings.Contains(err.Error(), "origin: not reachable") {
		t.Errorf("at the timeout: %v", err)
	}
	m := w.patient(time.Hour)
	g := m.open(im)
	ctx, cancel := context.WithCancelCause(t.Context())
	detached, stopped := read(ctx, g), read(t.Context(), g)
	w.eventually("both wait", func() bool { return g.Waiting().Reads == 2 })
	if err := g.Warm(t.Context(), nil); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("warm: %v", err)
	}
	cancel(errCancelled)
	if err := <-detached; !errors.Is(err, errCancelled) {
		t.Errorf("detached: %v", err)
	}
	m.stop()
	if err := <-stopped; err == nil {
		t.Error("a stopped node has read")
	}
}

// TestWhatIsNowhereIsSaidAtOnce: the origin answers that the bytes are gone.
func TestWhatIsNowhereIsSaidAtOnce(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 8})
	m := w.join("north", func(cfg *fetch.Config) { cfg.IOTimeout = time.Hour })
	g := m.open(im)
	w.check(g.ReadChunk(t.Context(), 3, 0, make([]byte, 1)))
	w.hooks.gone.Store(true)
	if err := g.ReadChunk(t.Context(), 0, 0, make([]byte, 1)); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
}

// TestWhatIsNowhereIsToldToWhoCantAsk: a node without the origin hears of members that it
// says that the bytes are gone, or damaged; of two, so that none ends a guest alone, or
// of the only one that there is.
func TestWhatIsNowhereIsToldToWhoCantAsk(t *testing.T) {
	for name, c := range map[string]struct {
		asked    int // members beside the reader,
		able     int // of whom as many can ask the origin
		believed bool
	}{
		"the only member": {1, 1, true}, "all three": {3, 3, true}, "two of three": {3, 2, true}, "one of three": {3, 1, false}, "none": {2, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			im := w.publish(imageConfig{chunks: 8})
			var others []*node
			for range c.asked {
				others = append(others, w.join("north", nil))
			}
			m := w.patient(time.Hour)
			m.origin.Store(false)
			g := m.open(im)
			w.check(g.ReadChunk(t.Context(), 3, 0, make([]byte, 1)))
			for _, o := range others[c.able:] {
				o.origin.Store(false)
			}
			w.hooks.gone.Store(true)
			came := make(chan error, 1)
			go func() { came <- g.ReadChunk(t.Context(), 0, 0, make([]byte, 1)) }()
			if !c.believed {
				w.eventually("it waits", func() bool { return g.Waiting().Reads == 1 })
				w.hooks.gone.Store(false)
				others[0].origin.Store(true)
				w.check(<-came)
				return
			}
			select {
			case err := <-came:
				if !errors.Is(err, content.ErrNotFound) {
					t.Errorf("%v, want ErrNotFound", err)
				}
			case <-time.After(30 * time.Second):
				t.Error("it waits")
			}
		})
	}
}
