package fetch_test

import (
	"context"
	"testing"

	"github.com/grangemesh/grange/node/fetch"
)

// imageChunks make an image of a few packs and some dozens of runs.
const imageChunks = 160

func (w *world) farm(name string, n int) []*node {
	w.t.Helper()
	var out []*node
	for range n {
		out = append(out, w.join(name, nil))
	}
	return out
}

// copies is how often the image crossed the origin's uplink, and requests a run.
func (w *world) copies(im *image) float64 {
	return float64(w.got.Load()) / float64(im.stats.UploadedBytes)
}

func TestColdFarmReadsOnce(t *testing.T) {
	for _, how := range []string{"guests", "prefetch"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			im := w.publish(imageConfig{chunks: imageChunks})
			members := w.farm("north", 6)
			w.forget()
			err := all(members, func(m *node) error {
				g := m.open(im)
				if how == "prefetch" {
					if err := g.Warm(t.Context(), nil); err != nil {
						return err
					}
				}
				return readAll(t.Context(), g, im)
			})
			w.check(err)
			t.Logf("%.3f copies in %d requests of %d runs", w.copies(im), w.gets.Load(), im.stats.UploadedBytes>>20)
			if c := w.copies(im); c > 1.05 {
				t.Errorf("%.3f copies left the origin, want at most 1.05", c)
			}
			var farm int64
			for _, m := range members {
				farm += m.Bytes()[fetch.FromFarm]
			}
			if farm == 0 {
				t.Error("nothing came from the farm")
			}
		})
	}
}

// TestWarmFarmAsksNobodyOutside: whatever happens to its members, what the farm
// holds costs the origin nothing.
func TestWarmFarmAsksNobodyOutside(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	members := w.farm("north", 6)
	warm := func(m *node) error { return m.open(im).Warm(t.Context(), nil) }
	w.check(all(members, warm))
	w.forget()
	none := func(what string) {
		t.Helper()
		if n := w.gets.Load(); n > 0 {
			t.Errorf("%s: %d requests to the origin, %d bytes", what, n, w.got.Load())
			w.forget()
		}
	}

	seventh := w.join("north", nil)
	w.check(warm(seventh))
	none("a member joined")

	w.eventually("all see what the others hold", func() bool { return allShown(im, append(members, seventh)) })
	for _, m := range members {
		if freed := m.cache.Evict(m.cache.Stats().Bytes / 3); freed == 0 {
			t.Fatal("nothing was evicted")
		}
	}
	eighth := w.join("north", nil)
	w.check(readAll(t.Context(), eighth.open(im), im))
	w.check(all(members, warm))
	none("a third of all caches was evicted")

	members[0].leave()
	w.check(readAll(t.Context(), w.join("north", nil).open(im), im))
	none("a member left")
}

// allShown reports whether the bitmaps of all members show all of the image to
// all of them.
func allShown(im *image, members []*node) bool {
	for _, m := range members {
		shown := m.Shown(im.id)
		for _, other := range members {
			if other != m && shown[other.id] < im.stats.Chunks {
				return false
			}
		}
	}
	return true
}

// TestLeadDiesMidway: the others go on, and the origin pays for little more.
func TestLeadDiesMidway(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	members := w.farm("north", 5)
	w.forget()
	dying := members[2]
	ctx, cancel := context.WithCancelCause(t.Context())
	half := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		<-half
		cancel(errCancelled)
		dying.stop() // gossip has not noticed yet
	}()
	n := 0
	err := all(members, func(m *node) error {
		g := m.open(im)
		if m == dying {
			g.Warm(ctx, nil)
			return nil
		}
		if m != members[0] {
			return g.Warm(t.Context(), nil)
		}
		return g.Warm(t.Context(), func(s fetch.Source, _ int) {
			if n++; n == imageChunks/3 {
				close(half)
			}
		})
	})
	w.check(err)
	<-killed
	for _, m := range members {
		if m != dying {
			w.check(readAll(t.Context(), m.open(im), im))
		}
	}
	t.Logf("%.3f copies", w.copies(im))
	if c := w.copies(im); c > 1.5 {
		t.Errorf("%.3f copies left the origin, want at most 1.5", c)
	}
}
