package farm

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
)

// simulated is a farm on a simulated network, in simulated time.
type simulated struct {
	t     *testing.T
	lan   *network
	farms []*Farm
	ports []*port
	stops []func()
}

// simulate runs f with a farm of so many members that all know each other.
func simulate(t *testing.T, members int, f func(t *testing.T, s *simulated)) {
	synctest.Test(t, func(t *testing.T) {
		s := &simulated{t: t, lan: newLAN()}
		defer s.stop()
		for i := range members {
			s.add(fmt.Sprintf("n%02d", i), i+1)
		}
		s.settle(time.Minute, func() bool { return s.allSee(members) })
		f(t, s)
	})
}

func (s *simulated) stop() {
	for _, stop := range s.stops {
		stop()
	}
	<-time.After(time.Minute) // what memberlist had begun when it was shut down
}

// add starts a member that knows the first one's address.
func (s *simulated) add(node string, number int) *Farm {
	return s.run(configOf(node), number)
}

// run starts a member of that configuration.
func (s *simulated) run(cfg Config, number int) *Farm {
	p := s.lan.plug(number)
	cfg.Join, cfg.Addrs, cfg.Transport = []string{"10.0.0.1:7946"}, []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/10.0.0.%d/tcp/4001", number))}, p
	f, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := f.Start(); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		f.Run(ctx) // a good-bye that nobody hears is an error, which some tests want
		close(ended)
	}()
	s.farms, s.ports = append(s.farms, f), append(s.ports, p)
	s.stops = append(s.stops, func() { cancel(); <-ended })
	return f
}

// settle returns how long it took until ready, which is looked at every tenth of
// a second.
func (s *simulated) settle(limit time.Duration, ready func() bool) time.Duration {
	s.t.Helper()
	begun := time.Now()
	for !ready() {
		if time.Since(begun) > limit {
			s.t.Fatalf("not within %s; member counts %v", limit, s.counts())
		}
		<-time.After(100 * time.Millisecond)
	}
	return time.Since(begun)
}

func (s *simulated) counts() (out []int) {
	for _, f := range s.farms {
		out = append(out, len(f.Members()))
	}
	return out
}

// allSee reports whether every member that is not dead sees so many.
func (s *simulated) allSee(want int) bool {
	for i, f := range s.farms {
		s.lan.mu.Lock()
		dead := s.ports[i].dead
		s.lan.mu.Unlock()
		if !dead && len(f.Members()) != want {
			return false
		}
	}
	return true
}

// expelled counts how often a member has taken another for dead so far, whether
// that one came back or not.
func (s *simulated) expelled() (n float64) {
	for _, f := range s.farms {
		r := prometheus.NewRegistry()
		r.MustRegister(f.metrics.lost)
		families, err := r.Gather()
		if err != nil {
			s.t.Fatal(err)
		}
		n += families[0].GetMetric()[0].GetCounter().GetValue()
	}
	return n
}

// sizes are of the farms that a crash is tried in.
func sizes() []int {
	if os.Getenv("GRANGE_SOAK") == "1" {
		return []int{2, 3, 10, 30, 100, 200}
	}
	return []int{2, 3, 10, 30}
}

func TestCrashIsSeenWithinTenSeconds(t *testing.T) {
	for _, members := range sizes() {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			simulate(t, members, func(t *testing.T, s *simulated) {
				s.ports[1].crash()
				first := s.settle(time.Minute, func() bool { return len(s.farms[0].Members()) < members })
				took := first + s.settle(time.Minute, func() bool { return s.allSee(members - 1) })
				t.Logf("%d members: one knew after %s, all after %s", members, first, took)
				if took > 10*time.Second {
					t.Errorf("a crash was seen after %s", took)
				}
			})
		})
	}
}

func TestLeaveIsSeenAtOnce(t *testing.T) {
	simulate(t, 30, func(t *testing.T, s *simulated) {
		s.stops[7]()
		if took := s.settle(10*time.Second, func() bool { return s.allSee(29) }); took > 2*time.Second {
			t.Errorf("a leave was seen after %s", took)
		}
	})
}

// TestHalvesFindTogether cuts a farm for longer than gossip remembers its dead.
func TestHalvesFindTogether(t *testing.T) {
	simulate(t, 20, func(t *testing.T, s *simulated) {
		s.lan.change(func(l *network) { l.cut = func(from, to *port) bool { return from.number%2 != to.number%2 } })
		s.settle(time.Minute, func() bool { return s.allSee(10) })
		<-time.After(5 * time.Minute)
		if !s.allSee(10) {
			t.Error("a cut farm has", s.counts())
		}
		s.lan.change(func(l *network) { l.cut = func(_, _ *port) bool { return false } })
		took := s.settle(2*time.Minute, func() bool { return s.allSee(20) })
		t.Logf("together again after %s", took)
	})
}

func TestLossDoesNotExpel(t *testing.T) {
	simulate(t, 12, func(t *testing.T, s *simulated) {
		s.lan.change(func(l *network) { l.loss = 0.05 })
		<-time.After(10 * time.Minute)
		if !s.allSee(12) || s.expelled() > 0 {
			t.Errorf("members were expelled: %v times, %v", s.expelled(), s.counts())
		}
	})
}

// TestPausedMemberIsSoonBack: a host whose processors are taken for seconds may be
// taken for dead, but not for long.
func TestPausedMemberIsSoonBack(t *testing.T) {
	simulate(t, 12, func(t *testing.T, s *simulated) {
		s.lan.change(func(l *network) { l.loss = 0.05 })
		for n := range 10 {
			s.lan.change(func(l *network) { l.cut = func(from, to *port) bool { return from.number == 3 || to.number == 3 } })
			<-time.After(3 * time.Second)
			s.lan.change(func(l *network) { l.cut = func(_, _ *port) bool { return false } })
			<-time.After(2 * rejoinInterval)
			if !s.allSee(12) {
				t.Errorf("pause %d: members are still missing: %v", n, s.counts())
			}
		}
		t.Logf("12 members took another for dead %v times in 10 pauses of 3 s", s.expelled())
	})
}

func TestMemberComesBackElsewhere(t *testing.T) {
	simulate(t, 5, func(t *testing.T, s *simulated) {
		s.ports[4].crash()
		s.settle(time.Minute, func() bool { return s.allSee(4) })
		s.add("n04", 77)
		s.settle(time.Minute, func() bool { return s.allSee(5) })
		if m := s.farms[0].of("n04"); m.Address != "10.0.0.77:7946" || len(m.Addrs) != 1 || !strings.HasPrefix(m.Addrs[0].String(), "/ip4/10.0.0.77/") {
			t.Errorf("it is listed as %+v", m)
		}
	})
}
