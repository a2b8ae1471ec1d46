package swarm

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/p2p/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// imageChunks make four runs: members get by with some MiB each, which QUIC has to encrypt.
const imageChunks = 32

// runChunks are of one run, which a request is for.
const runChunks = 8

// atMost fails when the origin has sent more than a multiple of what an image takes there.
func (w *world) atMost(im *image, times float64) {
	w.t.Helper()
	sent := float64(w.got.Load()) / float64(im.stored)
	w.t.Logf("the origin has sent %.3f × the image", sent)
	if sent > times {
		w.t.Errorf("the origin has sent %.3f × the image, at most %.2f are right", sent, times)
	}
}

// within fails when something takes longer.
func (w *world) within(most time.Duration, do func()) {
	w.t.Helper()
	begun := time.Now()
	do()
	took := time.Since(begun)
	w.t.Logf("took %v", took)
	if took > most {
		w.t.Errorf("took %v, at most %v are right", took, most)
	}
}

// once is how long the origin's line takes to send an image once.
func once(im *image) time.Duration { return time.Duration(im.stored * int64(time.Second) / originRate) }

// allHold fails unless members have the image, as it was imported.
func (w *world) allHold(im *image, members []*node) {
	w.t.Helper()
	synctest.Wait() // what has come is on the disk a little later
	w.all(members, func(n *node) error { return n.holds(im) })
}

// TestFlashCrowd has three farms want an image at once that nobody has, on lines that lose
// some packets, or none.
func TestFlashCrowd(t *testing.T) {
	for _, loss := range []float64{0, 0.005} {
		t.Run(fmt.Sprint(loss), func(t *testing.T) {
			simulate(t, 1, func(w *world) {
				im := w.publish(1, 4*imageChunks) // of so many runs that one which comes twice, as two farms begin it at once, is not a tenth
				for _, farm := range []string{"north", "south", "west"} {
					w.farm(farm, 6)
				}
				w.loss = loss
				members := w.members("")
				w.open(im, members)
				w.within(2*once(im)+5*time.Second, func() { w.all(members, (*node).warm) })
				w.allHold(im, members)
				w.atMost(im, 1.1)
			})
		})
	}
}

// TestLeadsDie takes the cables of some members out while all want an image: no connection
// ends, nothing answers.
func TestLeadsDie(t *testing.T) {
	simulate(t, 2, func(w *world) {
		im := w.publish(1, imageChunks)
		members := w.farm("north", 10)
		w.open(im, members)
		dead, rest := members[:2], members[2:]
		w.within(2*once(im)+15*time.Second, func() {
			var g errgroup.Group
			g.Go(func() error {
				<-time.After(once(im) / 2)
				for _, n := range dead {
					n.unplug()
				}
				return nil
			})
			w.all(rest, (*node).warm)
			_ = g.Wait()
		})
		w.allHold(im, rest)
		w.atMost(im, 1.5)
	})
}

// readers has guests on members read the image, while something happens a while after they
// began, and fails when a read takes longer than most.
func (w *world) readers(im *image, members []*node, most time.Duration, happens func()) {
	w.t.Helper()
	var g errgroup.Group
	g.Go(func() error { <-time.After(time.Second); happens(); return nil })
	for _, n := range members {
		g.Go(func() error {
			took, err := n.guest(im, 100*time.Millisecond)
			if err == nil && took[len(took)-1] > most {
				err = fmt.Errorf("a guest's read on %s took %v, at most %v are right; half of them %v", n.id, took[len(took)-1], most, took[len(took)/2])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		w.t.Error(err)
	}
}

// TestGuestsOutliveAPeer has guests read what two members hold, and the origin has not any
// more, while something befalls one of the two.
func TestGuestsOutliveAPeer(t *testing.T) {
	for name, befalls := range map[string]func(*node){
		"killed":    (*node).kill,
		"unplugged": (*node).unplug,
		"slow":      func(n *node) { n.slow(16 << 10) },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, 3, func(w *world) {
				im := w.publish(1, imageChunks)
				members := w.farm("north", 6)
				holders, guests := members[:2], members[2:]
				w.open(im, members)
				w.all(holders, (*node).warm)
				w.down.Store(true)
				w.readers(im, guests, exchange.StallTimeout+time.Second, func() { befalls(holders[0]) })
				w.allHold(im, guests)
			})
		})
	}
}

// TestLiars has two of three that hold an image send wrong bytes to guests.
func TestLiars(t *testing.T) {
	simulate(t, 4, func(w *world) {
		im := w.publish(1, 2*imageChunks)
		holders, liars := w.farm("north", 1), []*liar{{}, {}}
		for _, l := range liars {
			holders = append(holders, w.join("north", func(s exchange.Server) exchange.Server { l.Server = s; return l }))
		}
		guests := w.farm("north", 5)
		w.open(im, w.members(""))
		w.all(holders, (*node).warm)
		w.down.Store(true)
		w.all(guests, func(n *node) error { _, err := n.guest(im, 10*time.Millisecond); return err })
		w.allHold(im, guests)
		sent := liars[0].sent.Load() + liars[1].sent.Load()
		if most := int64(runChunks * len(guests) * len(liars)); sent == 0 || sent > most {
			w.t.Errorf("%d wrong chunks were sent, at most %d are a request each", sent, most)
		}
	})
}

// TestPartition cuts two farms from each other, and one of them from the origin, until it
// is mended.
func TestPartition(t *testing.T) {
	simulate(t, 5, func(w *world) {
		im := w.publish(1, imageChunks)
		north, south := w.farm("north", 5), w.farm("south", 5)
		for _, n := range south {
			n.noOrigin = true
		}
		cut := func(is bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.cut = func(a, b *node) bool { return is && a.farm != b.farm }
		}
		w.open(im, append(north, south...))
		cut(true)
		var g errgroup.Group
		for _, n := range south[:2] { // guests wait for a source to come back
			g.Go(func() error { _, err := n.guest(im, 0); return err })
		}
		w.all(north, (*node).warm)
		<-time.After(30 * time.Second)
		cut(false)
		w.within(30*time.Second, func() {
			if err := g.Wait(); err != nil {
				w.t.Error(err)
			}
		})
		w.all(south, (*node).warm)
		w.allHold(im, append(north, south...))
		w.atMost(im, 1.1)
	})
}

// TestBrownOut has the origin take seconds for each answer while members want one image,
// which some have in part: guests read what is there as ever.
func TestBrownOut(t *testing.T) {
	simulate(t, 6, func(w *world) {
		im := w.publish(1, imageChunks)
		members := w.farm("north", 8)
		w.open(im, members)
		w.all(members[:1], (*node).warm)
		other := w.publish(2, imageChunks)
		w.sick.Store(int64(5 * time.Second))
		var g errgroup.Group
		for _, n := range members[4:] {
			g.Go(func() error {
				i, err := n.Learn(other.Root)
				if err == nil {
					err = i.Warm(w.t.Context(), func(fetch.Source, int) {})
				}
				return err
			})
		}
		w.readers(im, members[1:4], time.Second, func() {})
		if err := g.Wait(); err != nil {
			w.t.Error(err)
		}
		w.atMost(other, 2)
	})
}

// TestChurn has members come and go, some with and some without a word, while all that are
// there want an image.
func TestChurn(t *testing.T) {
	simulate(t, 7, func(w *world) {
		im := w.publish(1, 2*imageChunks)
		w.line.SetLimit(1 << 20) // it takes a while
		stay := w.farm("north", 6)
		w.open(im, stay)
		var g errgroup.Group
		for _, n := range stay {
			g.Go(n.warm)
		}
		for i := range 8 {
			n := w.join("north", nil)
			w.open(im, []*node{n})
			warm := make(chan error, 1)
			go func() { warm <- n.warm() }()
			<-time.After(time.Second)
			if i%2 == 0 {
				n.unplug()
			}
			n.kill()
			<-warm // whatever came of it
		}
		if err := g.Wait(); err != nil {
			w.t.Error(err)
		}
		w.allHold(im, stay)
		w.atMost(im, 2) // more than half of them died
	})
}
