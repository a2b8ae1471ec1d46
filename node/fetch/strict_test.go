package fetch_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
)

// strict starts a member that reads one name from members alone.
func (w *world) strict(farm string, wait time.Duration) *node {
	return w.join(farm, func(c *fetch.Config) {
		c.IOTimeout = wait
		c.NoOrigin = func(as content.Ref) bool { return as.Name == "debian" }
	})
}

// openAs opens an image by a name.
func (m *node) openAs(im *image, name string) *fetch.Image {
	m.w.t.Helper()
	r := im.Root
	r.As = []content.Ref{{Kind: content.KindImage, Name: name}}
	out, err := m.Learn(r)
	m.w.check(err)
	return out
}

// refused fails unless an error says what was not asked, and by whose wish.
func refused(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, content.ErrUnavailable) || !strings.Contains(err.Error(), "image:debian") || !strings.Contains(err.Error(), "--no-origin-fallback") {
		t.Errorf("it failed so: %v", err)
	}
}

// TestStrictNamesSpendNothingAtTheOrigin: what is read by a strict name is read from members
// alone, by this node and by those that it asks; warm fails soon, and a guest when it has
// waited. What is read by another name is not held up, and what others have is had.
func TestStrictNamesSpendNothingAtTheOrigin(t *testing.T) {
	simulate(t, 3, func(w *world) {
		t, ctx := w.t, w.t.Context()
		im := w.publish(imageConfig{chunks: imageChunks})
		others := w.farm("north", 2)
		m := w.strict("north", 10*time.Second)
		w.forget()
		g := m.openAs(im, "debian")
		begun := time.Now()
		refused(t.(*testing.T), g.Warm(ctx, nil))
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("a warm that nobody serves took %s to fail", took)
		}
		begun = time.Now()
		refused(t.(*testing.T), g.ReadChunk(ctx, 0, 0, make([]byte, 4096)))
		if took := time.Since(begun); took < 10*time.Second || took > 15*time.Second {
			t.Errorf("a read that nobody serves waited %s", took)
		}
		if w.gets.Load() > 0 {
			t.Fatalf("the origin was read %d times", w.gets.Load())
		}
		w.check(all(others, func(o *node) error { return o.open(im).Warm(ctx, nil) }))
		w.copies(im, 1.02)
		w.forget()
		w.check(readAll(ctx, g, im))
		w.check(g.Warm(ctx, nil))
		w.copies(im, 0)
	})
}

// TestStrictReadsHoldUpNoOthers: one waits for members, and a read of the same chunk by
// another name, and a member's that asks this node as the lead, read the origin.
func TestStrictReadsHoldUpNoOthers(t *testing.T) {
	simulate(t, 2, func(w *world) {
		ctx := w.t.Context()
		im := w.publish(imageConfig{chunks: smallImage})
		m, other := w.strict("north", time.Minute), w.join("north", nil)
		waiting, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- readAll(waiting, m.openAs(im, "debian"), im) }()
		synctest.Wait()
		if w.gets.Load() > 0 {
			w.t.Errorf("the origin was read %d times", w.gets.Load())
		}
		w.check(other.open(im).Warm(ctx, nil))
		if err := <-ended; err != nil { // it is here now
			w.t.Error(err)
		}
		cancel()
		w.copies(im, 1.02)
		m.cache.Evict(1 << 30)
		other.leave()
		go func() { ended <- readAll(ctx, m.openAs(im, "debian"), im) }()
		synctest.Wait()
		w.check(readAll(ctx, m.openAs(im, "another"), im))
		w.check(<-ended)
	})
}
