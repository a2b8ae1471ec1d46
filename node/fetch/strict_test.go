package fetch_test

import (
	"errors"
	"strings"
	"testing"
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
// alone, by this node and by those that it asks; warm fails, and a guest when it has waited.
// What others have is had.
func TestStrictNamesSpendNothingAtTheOrigin(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: smallImage})
	others := w.farm("north", 2)
	m := w.strict("north", time.Second)
	w.forget()
	g := m.openAs(im, "debian")
	refused(t, g.Warm(t.Context(), nil))
	refused(t, g.ReadChunk(t.Context(), 0, 0, make([]byte, 4096)))
	if w.gets.Load() > 0 {
		t.Fatalf("the origin was read %d times", w.gets.Load())
	}
	w.check(all(others, func(o *node) error { return o.open(im).Warm(t.Context(), nil) }))
	w.forget()
	w.check(g.Warm(t.Context(), nil))
	w.check(readAll(t.Context(), g, im))
	w.copies(im, 0)
}

// TestStrictReadsHoldUpNoOthers: one waits for members; a read of the same chunk by another
// name reads the origin, and then the one that waits has it.
func TestStrictReadsHoldUpNoOthers(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: smallImage})
	m := w.strict("north", ioTimeout)
	w.farm("north", 1)
	w.forget()
	strict := m.openAs(im, "debian")
	ended := make(chan error, 1)
	go func() { ended <- readAll(t.Context(), strict, im) }()
	w.eventually("it waits", func() bool { return strict.Waiting().Reads > 0 })
	if w.gets.Load() > 0 {
		t.Errorf("the origin was read %d times", w.gets.Load())
	}
	w.check(readAll(t.Context(), m.openAs(im, "another"), im))
	w.check(<-ended)
}
