package exchange

import (
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/p2p/wire"
)

// modelQueue is who waits, and in which order they came.
type modelQueue struct {
	waiting []*ticket
	born    map[*ticket]int
}

func (m *modelQueue) remove(t *ticket) {
	m.waiting = slices.DeleteFunc(m.waiting, func(o *ticket) bool { return o == t })
}

func TestQueueServesByPriorityThenPeersByAge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q queue
		m := modelQueue{born: map[*ticket]int{}}
		blocked := map[peer.ID]bool{}
		mayGo := func(k *ticket) bool { return !blocked[k.peer] }
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				k := &ticket{
					peer:     peer.ID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "peer")),
					priority: Priority(rapid.IntRange(0, wire.Priorities-1).Draw(t, "priority")),
				}
				want := 0
				for _, o := range m.waiting {
					if o.priority >= k.priority {
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
					case blocked[o.peer]:
					case k == nil:
						t.Fatalf("%v of %s may go and did not", o.priority, o.peer)
					case o.priority > k.priority:
						t.Fatalf("%v went before %v", k.priority, o.priority)
					case o.priority == k.priority && o.peer == k.peer && m.born[o] < m.born[k]:
						t.Fatalf("ticket %d of %s went before its older %d", m.born[k], k.peer, m.born[o])
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
				q.push(&ticket{peer: id, priority: PriorityPrefetch})
			}
		}
		served := map[peer.ID]int{}
		for k := q.pop(func(*ticket) bool { return true }); k != nil; k = q.pop(func(*ticket) bool { return true }) {
			served[k.peer]++
			left[k.peer]--
			for id, n := range left {
				if n > 0 && served[k.peer] > served[id]+1 {
					t.Fatalf("%s had %d turns while %s, who waits, had %d", k.peer, served[k.peer], id, served[id])
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
		s := turns{max: rapid.IntRange(1, 3).Draw(t, "max")}
		var out, waiting []*ticket
		collect := func() {
			waiting = slices.DeleteFunc(waiting, func(k *ticket) bool {
				select {
				case <-k.ready:
					out = append(out, k)
					return true
				default:
					return false
				}
			})
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				k := &ticket{peer: "a", priority: Priority(rapid.IntRange(0, wire.Priorities-1).Draw(t, "priority")), ready: make(chan struct{}, 1)}
				if _, taken := s.take(k); taken {
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
				s.give(k)
			},
			"leave": func(t *rapid.T) {
				if len(waiting) == 0 {
					return
				}
				k := rapid.SampledFrom(waiting).Draw(t, "ticket")
				waiting = slices.DeleteFunc(waiting, func(o *ticket) bool { return o == k })
				s.leave(k)
			},
			"": func(t *rapid.T) {
				collect()
				count := func(tickets []*ticket, guest bool) (n int) {
					for _, k := range tickets {
						if (k.priority == PriorityGuest) == guest {
							n++
						}
					}
					return n
				}
				for _, guest := range []bool{true, false} {
					n := count(out, guest)
					if n > s.max || n < s.max && count(waiting, guest) > 0 {
						t.Fatalf("guests %v: %d of %d turns are out, %d wait", guest, n, s.max, count(waiting, guest))
					}
				}
			},
		})
	})
}

func TestOutstandingCountsEachIndexOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		asked := rapid.SliceOfNDistinct(rapid.Uint64Range(0, 50), 1, 30, rapid.ID[uint64]).Draw(t, "asked")
		slices.Sort(asked)
		o := newOutstanding(asked)
		left := slices.Clone(asked)
		for _, index := range rapid.SliceOf(rapid.Uint64Range(0, 50)).Draw(t, "answers") {
			want := slices.Contains(left, index)
			if got := o.answer(index); got != want {
				t.Fatalf("answer(%d) = %v, want %v", index, got, want)
			}
			left = slices.DeleteFunc(left, func(i uint64) bool { return i == index })
		}
		if o.left != len(left) || !slices.Equal(o.rest(), left) {
			t.Fatalf("left %v, want %v", o.rest(), left)
		}
	})
}
