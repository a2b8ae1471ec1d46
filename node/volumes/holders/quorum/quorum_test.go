package quorum

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/trust"
)

func key(i int) trust.PublicKey { return trust.PublicKey{byte(i)} }

func keys(n ...int) (out []trust.PublicKey) {
	for _, i := range n {
		out = append(out, key(i))
	}
	return out
}

// TestReplacement walks through the loss of a holder: nothing is acknowledged until the
// record names another one who has all.
func TestReplacement(t *testing.T) {
	s := New(2, false, Record{Holders: keys(1, 2)}, 0)
	now := time.Unix(0, 0)
	check := func(what string, got []Action, want ...Action) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	check("start", s.Step(Tick{now, keys(3, 1, 2)}), Follow{key(1), false}, Follow{key(2), false})
	s.Step(Flushing{10})
	s.Step(Had{key(1), 10})
	if s.Acknowledged() != 0 {
		t.Fatal("acknowledged with one of two")
	}
	s.Step(Had{key(2), 10})
	if s.Acknowledged() != 10 {
		t.Fatalf("acknowledged %d of 10", s.Acknowledged())
	}
	check("a holder goes", s.Step(Lost{key(2)}), Follow{key(3), true})
	s.Step(Flushing{20})
	s.Step(Had{key(1), 20})
	check("another fills", s.Step(Had{key(3), 9}))
	check("it has all that was acknowledged", s.Step(Had{key(3), 10}), Commit{Record{Holders: keys(1, 3)}})
	s.Step(Had{key(3), 20})
	if s.Acknowledged() != 10 {
		t.Fatal("acknowledged before the record says who has it")
	}
	check("the outcome is unknown: it is written again", s.Step(Doubted{}), Commit{Record{Holders: keys(1, 3)}})
	if s.Acknowledged() != 10 {
		t.Fatal("acknowledged by a record that may not be")
	}
	s.Step(Recorded{Record{Holders: keys(1, 3)}})
	if s.Acknowledged() != 20 {
		t.Fatalf("acknowledged %d of 20", s.Acknowledged())
	}
}

// TestReturn: a holder that was away for a moment stays one, and who was asked in its
// place is left.
func TestReturn(t *testing.T) {
	s := New(1, false, Record{Holders: keys(1)}, 0)
	now := time.Unix(0, 0)
	s.Step(Tick{now, keys(2, 1)})
	s.Step(Lost{key(1)})
	got := s.Step(Tick{now.Add(returnAfter), keys(2, 1)})
	if fmt.Sprint(got) != fmt.Sprint([]Action{Follow{key(1), false}}) {
		t.Fatalf("%v", got)
	}
	if got := s.Step(Had{key(1), 5}); fmt.Sprint(got) != fmt.Sprint([]Action{Leave{key(2)}}) {
		t.Fatalf("%v", got)
	}
}

// TestAlone: a volume that may goes on alone once the record says so, and is held by k
// again only when they have all.
func TestAlone(t *testing.T) {
	s := New(1, true, Record{Holders: keys(1)}, 0)
	now := time.Unix(0, 0)
	s.Step(Tick{now, nil})
	s.Step(Lost{key(1)})
	s.Step(Flushing{5})
	got := s.Step(Tick{now.Add(DegradeAfter), nil})
	if !slices.ContainsFunc(got, func(a Action) bool { c, ok := a.(Commit); return ok && c.Record.Degraded }) {
		t.Fatalf("%v, want it to say that it is degraded", got)
	}
	if s.Acknowledged() != 0 {
		t.Fatal("acknowledged alone before the record says so")
	}
	s.Step(Recorded{Record{keys(1), true}})
	if s.Acknowledged() != 5 {
		t.Fatalf("acknowledged %d of 5 alone", s.Acknowledged())
	}
	s.Step(Flushing{6})
	got = s.Step(Tick{now.Add(DegradeAfter + 2*aloneFor), keys(2)})
	if fmt.Sprint(got) != fmt.Sprint([]Action{Follow{key(2), true}}) {
		t.Fatalf("%v", got)
	}
	s.Step(Flushing{7})
	if s.Acknowledged() != 6 {
		t.Fatalf("acknowledged %d alone, and nobody has looked whose the volume is", s.Acknowledged())
	}
	s.Step(Confirmed{})
	if s.Acknowledged() != 7 {
		t.Fatalf("acknowledged %d of 7 alone", s.Acknowledged())
	}
	if got := s.Step(Had{key(2), 6}); len(got) != 0 {
		t.Fatalf("%v before it has what was acknowledged", got)
	}
	s.Step(Flushing{8})
	if s.Acknowledged() != 7 {
		t.Fatalf("acknowledged %d alone, while another one is about to be named", s.Acknowledged())
	}
	if got := s.Step(Had{key(2), 7}); fmt.Sprint(got) != fmt.Sprint([]Action{Commit{Record{Holders: keys(2)}}}) {
		t.Fatalf("%v", got)
	}
	s.Step(Recorded{Record{Holders: keys(2)}})
	if s.Acknowledged() != 7 {
		t.Fatalf("acknowledged %d, and the holder has 7", s.Acknowledged())
	}
	s.Step(Had{key(2), 8})
	if s.Acknowledged() != 8 {
		t.Fatalf("acknowledged %d of 8", s.Acknowledged())
	}
}

// TestAloneNoMore: who takes back that flushes go on alone has those wait that come then, though the
// record says degraded still, until as many have all as are asked for.
func TestAloneNoMore(t *testing.T) {
	s := New(1, true, Record{Holders: keys(1), Degraded: true}, 0)
	s.Step(Tick{time.Unix(0, 0), nil})
	s.Step(Confirmed{})
	s.Step(Flushing{5})
	if s.Acknowledged() != 5 {
		t.Fatalf("acknowledged %d of 5 alone", s.Acknowledged())
	}
	s.Step(Wanted{K: 1})
	s.Step(Flushing{9})
	s.Step(Confirmed{})
	if s.Acknowledged() != 5 {
		t.Errorf("acknowledged %d alone, which was taken back at 5", s.Acknowledged())
	}
	s.Step(Tick{time.Unix(60, 0), keys(1)})
	s.Step(Had{key(1), 9})
	s.Step(Recorded{Record{Holders: keys(1)}})
	if s.Acknowledged() != 9 {
		t.Errorf("acknowledged %d of 9, which the holder has", s.Acknowledged())
	}
}

// TestDoubtedForLong: while the origin is away the same change is tried again and again, which is one
// that the record may say.
func TestDoubtedForLong(t *testing.T) {
	s := New(1, false, Record{Holders: keys(1)}, 0)
	s.Step(Tick{time.Unix(0, 0), keys(2)})
	s.Step(Lost{key(1)})
	tried := s.Step(Had{key(2), 5})
	for range 100 {
		if len(tried) != 1 {
			t.Fatalf("%v, want it tried again", tried)
		}
		tried = s.Step(Doubted{})
	}
	if n := len(s.records()); n > 3 {
		t.Errorf("the record may say %d things, of which two differ", n)
	}
}

// TestWiped: a holder that has lost what it had stays one by the record, which nobody can
// take the volume over by meanwhile, and begins anew once that was written as it is.
func TestWiped(t *testing.T) {
	s := New(1, false, Record{Holders: keys(1)}, 7)
	s.Step(Tick{time.Unix(0, 0), keys(1)})
	if got := s.Step(Empty{key(1)}); fmt.Sprint(got) != fmt.Sprint([]Action{Commit{Record{Holders: keys(1)}}}) {
		t.Fatalf("%v, want the record written as it is", got)
	}
	if got := s.Step(Recorded{Record{Holders: keys(1)}}); fmt.Sprint(got) != fmt.Sprint([]Action{Follow{key(1), true}}) {
		t.Fatalf("%v, want it to begin", got)
	}
	if s.Needed() != 7 {
		t.Fatalf("it is whole with %d of 7", s.Needed())
	}
	s.Step(Lost{key(1)})
	if got := s.Step(Tick{time.Unix(0, 0).Add(returnAfter), keys(1)}); fmt.Sprint(got) != fmt.Sprint([]Action{Follow{key(1), false}}) {
		t.Fatalf("%v, want it asked what it has", got)
	}
}

// TestNothingIsAcknowledgedThatARecordMayNotFind drives the state at random, with commits
// whose outcome is unknown, and holds that what is acknowledged is with each holder of the
// true record, or the true record says degraded.
func TestNothingIsAcknowledgedThatARecordMayNotFind(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 3).Draw(t, "k")
		truth := Record{Holders: keys(1, 2, 3)[:k]}
		has := map[trust.PublicKey]uint64{} // what each member has for good
		s := New(k, rapid.Bool().Draw(t, "lone"), truth, 0)
		now, end := time.Unix(0, 0), uint64(0)
		followed, begun, wiped := map[trust.PublicKey]bool{}, map[trust.PublicKey]bool{}, map[trust.PublicKey]bool{}
		whole := map[trust.PublicKey]uint64{} // of who lost what it had: it counts for nobody before
		var commit *Record
		step := func(e Event) {
			for _, a := range s.Step(e) {
				switch a := a.(type) {
				case Follow:
					followed[a.Member] = true
					if begun[a.Member] = a.Begin; a.Begin {
						whole[a.Member] = s.Needed()
						if slices.Contains(truth.Holders, a.Member) && !wiped[a.Member] {
							t.Fatalf("holder %d begins anew", a.Member[0])
						}
						delete(wiped, a.Member)
						has[a.Member] = 0
					}
				case Leave:
					delete(followed, a.Member)
				case Commit:
					if commit != nil {
						t.Fatal("two commits at once")
					}
					r := a.Record
					commit = &r
				}
			}
			for _, h := range truth.Holders {
				if wiped[h] || has[h] < whole[h] { // nobody takes the volume over by it
					continue
				}
				if !truth.Degraded && (len(truth.Holders) == k || s.Acknowledged() > 0) && has[h] < min(s.Acknowledged(), end) {
					t.Fatalf("acknowledged %d, and holder %d has %d", s.Acknowledged(), h[0], has[h])
				}
			}
		}
		any := func(f func(trust.PublicKey)) func(*rapid.T) {
			return func(t *rapid.T) { f(key(rapid.IntRange(1, 5).Draw(t, "member"))) }
		}
		t.Repeat(map[string]func(*rapid.T){
			"write":   func(t *rapid.T) { end += rapid.Uint64Range(1, 2000).Draw(t, "entries") },
			"flush":   func(*rapid.T) { step(Flushing{end}) },
			"confirm": func(*rapid.T) { step(Confirmed{}) },
			"tick": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "s")) * time.Second)
				step(Tick{now, keys(rapid.Permutation([]int{1, 2, 3, 4, 5}).Draw(t, "live")[:rapid.IntRange(0, 5).Draw(t, "alive")]...)})
			},
			"ack": any(func(m trust.PublicKey) {
				if followed[m] && wiped[m] { // it is asked what it has, and has nothing
					delete(followed, m)
					step(Empty{m})
				}
				if followed[m] {
					has[m] = rapid.Uint64Range(has[m], max(end, has[m])).Draw(t, "has")
					step(Had{m, has[m]})
				}
			}),
			"ack all": func(*rapid.T) {
				for m := range followed {
					if followed[m] && !wiped[m] {
						has[m] = max(has[m], end)
						step(Had{m, has[m]})
					}
				}
			},
			"lose": any(func(m trust.PublicKey) {
				if followed[m] {
					delete(followed, m)
					step(Lost{m})
				}
			}),
			"wipe": any(func(m trust.PublicKey) {
				if followed[m] {
					delete(followed, m)
					has[m], wiped[m] = 0, true
					if begun[m] {
						step(Lost{m})
					} else {
						step(Empty{m})
					}
				}
			}),
			"end a commit": func(t *rapid.T) {
				if commit == nil {
					return
				}
				r := *commit
				commit = nil
				switch rapid.IntRange(0, 2).Draw(t, "outcome") {
				case 0:
					truth = r
					step(Recorded{r})
				case 1: // applied, and the reply lost
					truth = r
					step(Doubted{})
				default:
					step(Doubted{})
				}
			},
		})
	})
}
