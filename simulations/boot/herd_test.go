package boot

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// herd is how many nodes of one farm boot at once.
	herd = 24
	// herdBlockedMost is of what one is blocked, and herdSentMost of what the list takes at the store.
	herdBlockedMost, herdSentMost = 1.3, 1.1
)

// boots has nodes boot at once, each from a new volume of an image, and returns how long each took.
func (s *subject) boots(ctx context.Context, nodes []*lab.Node, volume, image string, speed float64) ([]time.Duration, error) {
	walls := make([]time.Duration, len(nodes))
	var all errgroup.Group
	for i, n := range nodes {
		all.Go(func() error {
			c := cold{Node: n}
			_, r, err := c.boots(ctx, fmt.Sprintf("%s-%d", volume, i), image, s.trace, s.raw, speed)
			walls[i] = r.Wall
			return err
		})
	}
	return walls, all.Wait()
}

func middle(walls []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(walls))[len(walls)/2]
}

// BenchmarkColdHerd says how long guests of a farm are blocked that all boot at once where their disk never was, from a store that is
// 60 ms away, beside one that does. All share this machine's processors, so that one boots while as many others do whose nodes have all:
// how long those take is what a boot takes here without waiting for bytes. The pauses are as recorded, which leaves the processors time.
func BenchmarkColdHerd(b *testing.B) {
	s := newSubject(b, debian.Server)
	for b.Loop() {
		site := newSiteBehind(b, &netns.Line{Rate: 1e9 / 8, Delay: 30 * time.Millisecond})
		s.publish(b, site)
		front, err := site.store.Front(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		start := func(farm string) *lab.Node {
			n, err := site.lab.Start(b.Context(), farm, front.URL)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
		var nodes []*lab.Node
		for range herd {
			nodes = append(nodes, start("herd"))
		}
		one := start("one")
		if err := site.publisher.Stop(); err != nil {
			b.Fatal(err)
		}
		boots := func(volume string, nodes ...*lab.Node) []time.Duration {
			walls, err := s.boots(b.Context(), nodes, volume, string(layout), recorded)
			if err != nil {
				b.Fatal(err)
			}
			return walls
		}
		before := front.Sent("packs/")
		cold := boots("cold", nodes...)
		sent := front.Sent("packs/") - before
		again := boots("again", append([]*lab.Node{one}, nodes...)...)
		warm := middle(again[1:])
		alone, together := again[0]-warm, middle(cold)-warm
		worst := slices.Max(cold) - warm
		line := fmt.Sprintf("%d cold nodes at once: blocked %s in the middle, %s at most; one beside as many warm ones %s (these took %s): %.2f ×, at most %.1f; the store sent %.1f MiB = %.2f × the list, at most %.1f",
			herd, seconds(together), seconds(worst), seconds(alone), seconds(warm), together.Seconds()/alone.Seconds(), herdBlockedMost, mib(sent), float64(sent)/float64(s.list.Stored), herdSentMost)
		b.Log(line)
		note(b, line)
	}
}
