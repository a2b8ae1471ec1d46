package turns

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/p2p/wire"
)

// modelQueue is who waits, and in which order they came.
type modelQueue struct {
	waiting []*Ticket
	born    map[*Ticket]int
}

func (m *modelQueue) remove(t *Ticket) {
	m.waiting = slices.DeleteFunc(m.waiting, func(o *Ticket) bool { return o == t })
}

func TestQueueServesByPriorityThenPeersByAge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		m := modelQueue{born: map[*Ticket]int{}}
		blocked := map[peer.ID]bool{}
		mayGo := func(k *Ticket) bool { return !blocked[k.Peer] }
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				k := &Ticket{
					Peer:     peer.ID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "peer")),
					Priority: wire.Priority(rapid.IntRange(0, wire.Priorities-1).Draw(t, "priority")),
				}
				want := 0
				for _, o := range m.waiting {
					if o.Priority >= k.Priority {
						want++
					}
				}
				if ahead := q.push(k); ahead != want {
					t.Fatalf("%d are ahead, want %d", ahead, want)
				}
				m.born[k] = len(m.born)
				m.waiting = append(m.waiting, k)
			},
			"block": func(t *rapid.T) {
				id := peer.ID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "peer"))
				blocked[id] = !blocked[id]
			},
			"remove": func(t *rapid.T) {
				if len(m.waiting) == 0 {
					return
				}
				k := rapid.SampledFrom(m.waiting).Draw(t, "ticket")
				if !q.remove(k) || q.remove(k) {
					t.Fatal("a waiting ticket must be removed once")
				}
				m.remove(k)
			},
			"pop": func(t *rapid.T) {
				k := q.pop(mayGo)
				for _, o := range m.waiting {
					switch {
					case blocked[o.Peer]:
					case k == nil:
						t.Fatalf("%v of %s may go and did not", o.Priority, o.Peer)
					case o.Priority > k.Priority:
						t.Fatalf("%v went before %v", k.Priority, o.Priority)
					case o.Priority == k.Priority && o.Peer == k.Peer && m.born[o] < m.born[k]:
						t.Fatalf("ticket %d of %s went before its older %d", m.born[k], k.Peer, m.born[o])
					}
				}
				if k != nil {
					m.remove(k)
				}
			},
		})
	})
}

func TestQueueIsFairAmongPeers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		left := map[peer.ID]int{}
		for _, id := range []peer.ID{"a", "b", "c", "d"} {
			left[id] = rapid.IntRange(0, 20).Draw(t, string(id))
			for range left[id] {
				q.push(&Ticket{Peer: id, Priority: wire.PriorityPrefetch})
			}
		}
		served := map[peer.ID]int{}
		for k := q.pop(func(*Ticket) bool { return true }); k != nil; k = q.pop(func(*Ticket) bool { return true }) {
			served[k.Peer]++
			left[k.Peer]--
			for id, n := range left {
				if n > 0 && served[k.Peer] > served[id]+1 {
					t.Fatalf("%s had %d turns while %s, who waits, had %d", k.Peer, served[k.Peer], id, served[id])
				}
			}
		}
		for id, n := range left {
			if n != 0 {
				t.Fatalf("%d tickets of %s were lost", n, id)
			}
		}
	})
}

func TestTurnsAreNeverLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Turns{Max: rapid.IntRange(1, 9).Draw(t, "max")}
		var out, waiting []*Ticket
		collect := func() {
			waiting = slices.DeleteFunc(waiting, func(k *Ticket) bool {
				select {
				case <-k.Ready:
					out = append(out, k)
					return true
				default:
					return false
				}
			})
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				k := &Ticket{Peer: "a", Priority: wire.Priority(rapid.IntRange(0, wire.Priorities-1).Draw(t, "priority")), Ready: make(chan struct{}, 1)}
				if _, taken := s.Take(k); taken {
					out = append(out, k)
				} else {
					waiting = append(waiting, k)
				}
			},
			"give": func(t *rapid.T) {
				if len(out) == 0 {
					return
				}
				k := out[0]
				out = out[1:]
				s.Give(k, 0)
			},
			"leave": func(t *rapid.T) {
				if len(waiting) == 0 {
					return
				}
				k := rapid.SampledFrom(waiting).Draw(t, "ticket")
				waiting = slices.DeleteFunc(waiting, func(o *Ticket) bool { return o == k })
				s.Leave(k)
			},
			"": func(t *rapid.T) {
				collect()
				var taken, want [wire.Priorities]int
				for _, k := range out {
					taken[k.Priority]++
				}
				for _, k := range waiting {
					want[k.Priority]++
				}
				part := [wire.Priorities]int{wire.PrioritySeed: s.Max / 2, wire.PriorityPrefetch: s.Max * 3 / 4, wire.PriorityReadahead: s.Max}
				full := taken[wire.PriorityGuest] == s.Max
				for p, most := wire.PriorityGuest, 0; ; p-- {
					if want[p] > 0 && !full {
						t.Fatalf("%v waits: turns out %v of %d", p, taken, s.Max)
					}
					if p == wire.PrioritySeed {
						break
					}
					full, most = p != wire.PriorityGuest && full, max(1, part[p-1])
					if n := s.upTo(p - 1); n > most {
						t.Fatalf("%d turns for %v and less, of at most %d", n, p-1, most)
					} else {
						full = full || n == most
					}
				}
			},
		})
	})
}

// pace takes turns of a priority, one after the other, and sends in each what it was to,
// until the returned function is called, which tells how many they were.
func pace(t *testing.T, s *Turns, p wire.Priority, size int) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() {
		n := 0
		k := NewTicket("bulk", p)
		for k.Size = size; s.Wait(ctx, k) == nil; n++ { // as whoever answers says before; else turns that cost nothing yet are given at once
			s.Give(k, size)
		}
		ended <- n
	}()
	return func() int { cancel(); return <-ended }
}

func TestRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size, seconds = 1 << 20, 96 << 10, 60
		s := Turns{Max: 8}
		s.Limit(rate)
		stop := pace(t, &s, wire.PriorityPrefetch, size)
		<-time.After(seconds * time.Second)
		if sent := float64(stop() * size); sent > rate*(seconds+burst.Seconds())+size || sent < 0.99*rate*seconds {
			t.Errorf("%.2f of what the rate gives was sent", sent/(rate*seconds))
		}
	})
}

func TestRateChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 128 << 10
		s := Turns{Max: 8}
		for _, rate := range []int64{64 << 10, 8 << 20, 1 << 20} {
			s.Limit(rate)
			stop := pace(t, &s, wire.PriorityReadahead, size)
			<-time.After(20 * time.Second)
			if sent := int64(stop() * size); sent < rate*18 || sent > rate*21+2*size {
				t.Errorf("%d bytes in 20 s at %d a second", sent, rate)
			}
		}
		s.mu.Lock()
		s.pay(9 * size)
		s.mu.Unlock()
		waiting := NewTicket("a", wire.PriorityGuest)
		if _, taken := s.Take(waiting); taken {
			t.Fatal("went in debt")
		}
		s.Limit(0)
		<-waiting.Ready
	})
}

// TestGuestOvertakesUnderTheRate: whatever waits and was sent before, the next turn is the guest's.
func TestGuestOvertakesUnderTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size = 256 << 10, 128 << 10
		s := Turns{Max: 8}
		s.Limit(rate)
		for _, p := range []wire.Priority{wire.PrioritySeed, wire.PriorityPrefetch, wire.PriorityReadahead} {
			defer pace(t, &s, p, size)()
		}
		for range 20 {
			<-time.After(777 * time.Millisecond)
			begun := time.Now()
			k := NewTicket("guest", wire.PriorityGuest)
			k.Size = size
			if err := s.Wait(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			s.Give(k, size)
			if took := time.Since(begun); took > time.Second*size/rate+time.Millisecond {
				t.Errorf("a guest waited for %v, longer than one object takes", took)
			}
		}
	})
}
