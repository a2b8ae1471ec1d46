package boot

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
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
	// herdSpeed has guests pause three times as long as recorded: the nodes of so many hosts take some 3 CPU-s each to bring a list in and to
	// be read, and the processors of one machine must not be what they wait for.
	herdSpeed = 3
	// logMax is more lines than a node's log has.
	logMax = 1 << 20
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

// cpu is what the nodes' processes have taken so far, in seconds.
func cpu(b *testing.B, nodes []*lab.Node) (sum float64) {
	b.Helper()
	for _, n := range nodes {
		took, err := n.Metric(b.Context(), "process_cpu_seconds_total")
		if err != nil {
			b.Fatal(err)
		}
		sum += took
	}
	return sum
}

// lists is how long it took the nodes to bring their lists in, by their logs.
func lists(b *testing.B, nodes []*lab.Node) (out []time.Duration) {
	b.Helper()
	for _, n := range nodes {
		for line := range strings.Lines(n.Tail(logMax)) {
			_, rest, is := strings.Cut(line, "a boot list was brought in")
			if _, took, ok := strings.Cut(rest, "took="); is && ok {
				d, err := time.ParseDuration(strings.Fields(took)[0])
				if err != nil {
					b.Fatal(err)
				}
				out = append(out, d)
				break
			}
		}
	}
	if len(out) != len(nodes) {
		b.Fatalf("%d of %d nodes have brought a list in", len(out), len(nodes))
	}
	return out
}

// BenchmarkColdHerd says how long guests of a farm are blocked that all boot at once where their disk never was, from a store that is
// 60 ms away, beside one that does. All share this machine's processors, so that one boots while as many others do whose nodes have all:
// how long those take is what a boot takes here without waiting for bytes. The pauses are longer than recorded, which leaves the processors time.
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
			n, err := site.lab.Start(b.Context(), farm, front.URL, "-v")
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
			walls, err := s.boots(b.Context(), nodes, volume, string(layout), herdSpeed)
			if err != nil {
				b.Fatal(err)
			}
			return walls
		}
		before, work := front.Sent("packs/"), cpu(b, nodes)
		cold := boots("cold", nodes...)
		work = cpu(b, nodes) - work
		sent := front.Sent("packs/") - before
		again := boots("again", append([]*lab.Node{one}, nodes...)...)
		warm := middle(again[1:])
		alone, together := again[0]-warm, middle(cold)-warm
		worst := slices.Max(cold) - warm
		line := fmt.Sprintf("%d cold nodes at once: blocked %s in the middle, %s at most; one beside as many warm ones %s (these took %s): %.2f ×, at most %.1f; the store sent %.1f MiB = %.2f × the list, at most %.1f",
			herd, seconds(together), seconds(worst), seconds(alone), seconds(warm), together.Seconds()/alone.Seconds(), herdBlockedMost, mib(sent), float64(sent)/float64(s.list.Stored), herdSentMost)
		b.Log(line)
		note(b, line)
		lists := lists(b, nodes)
		line = fmt.Sprintf("  their lists were in after %s in the middle and %s at most; the nodes took %.1f s of %d processors in %s", seconds(middle(lists)), seconds(slices.Max(lists)), work, runtime.NumCPU(), seconds(slices.Max(cold)))
		b.Log(line)
		note(b, line)
	}
}
