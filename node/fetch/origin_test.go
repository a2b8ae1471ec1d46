package fetch_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

// copies is how often the image crossed the origin's uplink since the last forget;
// no more often than most. It forgets.
func (w *world) copies(im *image, most float64) {
	w.t.Helper()
	if err := w.copied(im, most); err != nil {
		w.t.Error(err)
	}
}

func (w *world) copied(im *image, most float64) error {
	defer w.forget()
	copies := float64(w.got.Load()) / float64(im.stats.UploadedBytes)
	if copies > most {
		return fmt.Errorf("%.3f copies left the origin in %d requests of some %d runs, want at most %v", copies, w.gets.Load(), im.stats.UploadedBytes>>20, most)
	}
	return nil
}

// TestNodeReadsOnce: a node alone reads a run in one request, but where a guest waits for
// the beginning of one, and nothing twice.
func TestNodeReadsOnce(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves})
	g := w.join("north", nil).open(im)
	w.forget()
	w.check(readAll(t.Context(), g, im))
	const around = 16 // the map's three nodes, what a guest reads before readahead begins, and runs that a pack's end cuts
	if n, runs := w.gets.Load(), int64(im.stats.UploadedBytes>>20); n > runs+around {
		t.Errorf("%d requests for some %d runs", n, runs)
	}
	w.copies(im, 1.02)
	w.check(readAll(t.Context(), g, im))
	w.copies(im, 0)
}

// TestWaitingGuestReadsItsChunk: the origin sends a guest that reads here and there the
// chunks that it touches and their map, no runs, whether the cache keeps them or not.
func TestWaitingGuestReadsItsChunk(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		w := newWorld(t)
		im := w.publish(imageConfig{chunks: imageChunks, dense: true})
		m := w.join("north", nil)
		g := m.open(im)
		w.check(readOne(t.Context(), g, im, 0, make([]byte, content.ChunkSizeDefault))) // and the map
		w.forget()
		const touched = 12
		for i := 1; i <= touched; i++ {
			w.check(readOne(t.Context(), g, im, i*imageChunks/(touched+1), make([]byte, content.ChunkSizeDefault)))
			if !keeps {
				w.eventually("it has landed", func() bool { return m.Flights() == 0 })
				m.cache.Evict(1 << 30)
			}
		}
		if got, most := w.got.Load(), int64(touched*content.ChunkSizeDefault*11/10); got > most {
			t.Errorf("kept %t: %d bytes left the origin for %d chunks, want at most %d", keeps, got, touched, most)
		}
	}
}

func TestColdFarmReadsOnce(t *testing.T) {
	for _, how := range []string{"guests", "prefetch"} {
		t.Run(how, func(t *testing.T) {
			calmly(t, func() error {
				w := newWorld(t)
				im := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves})
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
				var farm int64
				for _, m := range members {
					farm += m.Bytes().Farm
				}
				if farm == 0 {
					t.Error("nothing came from the farm")
				}
				return w.copied(im, 1.05)
			})
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
		t.Log(what)
		w.copies(im, 0)
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
	w.copies(im, 1.5)
}

// TestReadersOutliveTheLead: a lead that dies with their requests in hand fails
// nobody.
func TestReadersOutliveTheLead(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves})
	members := w.farm("north", 4)
	var farm []plan.Peer
	for _, m := range members {
		m.open(im)
		farm = append(farm, plan.Peer(m.id))
	}
	at := slices.Index(farm, plan.Rank(fetch.RunKey(im.Head.Node.Run()), farm)[0]) // of what all read first
	lead := members[at]
	others := slices.Delete(members, at, at+1)
	gate := make(chan struct{})
	w.hooks.gate.Store(&gate)
	w.forget()
	ended := make(chan error, 1)
	go func() {
		ended <- all(others, func(m *node) error { return readAll(t.Context(), m.open(im), im) })
	}()
	w.eventually("the lead has work", func() bool { return lead.Flights() > 0 })
	lead.stop()
	close(gate)
	w.check(<-ended)
	w.copies(im, 1.3)
}

// TestMembersThatSeeOthersLead has each member see a farm of its own, so that they
// take each other for leads; nobody waits for somebody who waits for it.
func TestMembersThatSeeOthersLead(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 96})
	members := w.farm("north", 4)
	for i, m := range members {
		m.sees.Store(&[]peer.ID{m.id, members[(i+1)%len(members)].id})
	}
	w.forget()
	w.check(all(members, func(m *node) error { return readAll(t.Context(), m.open(im), im) }))
	w.copies(im, float64(len(members)))
}
