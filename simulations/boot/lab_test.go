package boot

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

// site is a store, a member that publishes, and cold members, each alone in its farm.
type site struct {
	tb        testing.TB
	lab       *lab.Lab
	store     *lab.Store
	publisher *lab.Node
	farms     int
}

func newSite(tb testing.TB) *site { return newSiteBehind(tb, nil) }

// newSiteBehind makes one whose store is behind a line, nil for none.
func newSiteBehind(tb testing.TB, line *netns.Line) *site {
	tb.Helper()
	l, err := lab.New(tb.Context(), lab.Command(), tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	s := &site{tb: tb, lab: l}
	tb.Cleanup(func() {
		if tb.Failed() {
			for _, n := range l.Nodes() {
				tb.Logf("── %s\n%s", n.Name, n.Tail(25))
			}
		}
		if err := l.Close(); err != nil {
			tb.Error(err)
		}
	})
	l.Line = line
	if s.store, err = l.StartStore(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	l.Line = nil
	if s.publisher, err = l.Start(tb.Context(), "publishers", s.store.URL, "--instance-emulator", "tcg"); err != nil {
		tb.Fatal(err)
	}
	return s
}

// run runs a command against a node, which is to succeed.
func run(tb testing.TB, n *lab.Node, args ...string) string {
	tb.Helper()
	out, err := n.Run(tb.Context(), args...)
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// asked counts what reaches the store through a front.
type asked struct {
	mu       sync.Mutex
	began    time.Time
	requests []ask
}

type ask struct {
	at, took time.Duration
	method   string
	key      string
	ranges   string
}

func (a *asked) pass(key string, w http.ResponseWriter, r *http.Request, store http.Handler) {
	at := time.Now()
	store.ServeHTTP(w, r)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, ask{at.Sub(a.began), time.Since(at), r.Method, key, r.Header.Get("Range")})
}

// reset forgets what was asked until now.
func (a *asked) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.began, a.requests = time.Now(), nil
}

// of is how many requests there were for keys with a prefix.
func (a *asked) of(prefix string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.requests {
		if strings.HasPrefix(r.key, prefix) {
			n++
		}
	}
	return n
}

// cold is a member that holds nothing, alone in its farm, behind a line to all others.
type cold struct {
	*lab.Node
	s      *site
	asked  asked
	front  *lab.Front
	before came
}

// cold starts one, and has the publisher stop: all that there is, the store has.
func (s *site) cold(line netns.Line) *cold {
	s.tb.Helper()
	c := &cold{s: s}
	var err error
	if c.front, err = s.store.Front(s.tb.Context()); err != nil {
		s.tb.Fatal(err)
	}
	c.front.Meddle(c.asked.pass)
	s.lab.Line, s.farms = &line, s.farms+1
	c.Node, err = s.lab.Start(s.tb.Context(), fmt.Sprintf("cold%d", s.farms), c.front.URL, "-v")
	s.lab.Line = nil
	if err == nil {
		err = s.publisher.Stop()
	}
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// end stops it and has the publisher run again.
func (c *cold) end() {
	c.s.tb.Helper()
	err := c.Stop()
	if err == nil {
		err = c.s.publisher.Restart(c.s.tb.Context())
	}
	if err == nil {
		err = os.RemoveAll(filepath.Join(c.Data, "cache"))
	}
	if err != nil {
		c.s.tb.Fatal(err)
	}
}

// came is what a cold member has brought in.
type came struct {
	raw      int64 // of chunks
	sent     int64 // by the store
	wire     int64 // over the line
	requests int   // at the store
}

// mark begins a measurement, and since returns what came from then on.
func (c *cold) mark() {
	c.s.tb.Helper()
	c.before = came{}
	c.asked.reset()
	c.before = c.since()
	c.asked.reset()
}

func (c *cold) since() came {
	c.s.tb.Helper()
	raw, err := c.Metric(c.s.tb.Context(), "grange_cache_chunk_bytes")
	if err != nil {
		c.s.tb.Fatal(err)
	}
	_, down := c.Host.Carried()
	return came{int64(raw) - c.before.raw, c.front.Sent("") - c.before.sent, down - c.before.wire, c.asked.of("") - c.before.requests}
}

// boots creates a volume and reads of it what a guest would.
func (c *cold) boots(ctx context.Context, name, image string, t Trace, raw *os.File, speed float64) (created time.Duration, r Replay, err error) {
	start := time.Now()
	uri, err := c.Run(ctx, "volume", "create", name, "--from", "image:"+image, "--transport", "nbd")
	if err != nil {
		return 0, r, err
	}
	created = time.Since(start)
	r, err = t.Replay(ctx, strings.TrimSpace(uri), raw, speed)
	return created, r, err
}
