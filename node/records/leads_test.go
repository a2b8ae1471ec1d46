package records

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// neighbours are the members of one farm, each with the mind that it has in a node.
type neighbours struct {
	mu  sync.Mutex // guards what follows
	all map[plan.Peer]*member
	// answers takes the place of what a member says.
	answers map[plan.Peer]func(context.Context, Question) (Answer, error)
}

func (x *neighbours) mind(m *member) func(func(*plan.Member)) {
	var mu sync.Mutex
	mind := plan.NewMember(m.peer(), m.self().Farm)
	return func(do func(*plan.Member)) {
		live := x.live()
		mu.Lock()
		defer mu.Unlock()
		mind.Farm(live)
		do(mind)
	}
}

func (m *member) peer() plan.Peer { return plan.Peer(m.self().Key.String()) }

func (x *neighbours) live() (out []plan.Peer) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p := range x.all {
		out = append(out, p)
	}
	return plan.Rank("", out) // in one order for all
}

func (x *neighbours) ask(ctx context.Context, from *member, p plan.Peer, q Question) (a Answer, err error) {
	x.mu.Lock()
	to, instead := x.all[p], x.answers[p]
	x.mu.Unlock()
	if instead != nil {
		a, err = instead(ctx, q)
	} else {
		a, err = to.Answer(ctx, from.self(), q)
	}
	a.Who = to.self()
	return a, err
}

// farmOf builds a farm.
func (w *world) farmOf(t fataler, dir string, nodes int) (*neighbours, []*member) {
	t.Helper()
	x := &neighbours{all: map[plan.Peer]*member{}, answers: map[plan.Peer]func(context.Context, Question) (Answer, error){}}
	var out []*member
	for i := range nodes {
		m := w.neighbour(t, x, filepath.Join(dir, fmt.Sprint(i)), trust.RoleNode, "a")
		x.all[m.peer()] = m
		out = append(out, m)
	}
	return x, out
}

// leads returns the members that lead a name, and the others.
func (x *neighbours) leads(name string) (leads, others []*member) {
	for i, p := range plan.Rank(key(content.KindImage, name), x.live()) {
		if i < 3 {
			leads = append(leads, x.all[p])
		} else {
			others = append(others, x.all[p])
		}
	}
	return leads, others
}

// resolveAll has all resolve an image at once.
func resolveAll(t *testing.T, all []*member, name string) (out []Resolved, errs []error) {
	t.Helper()
	out, errs = make([]Resolved, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i, m := range all {
		wg.Go(func() { out[i], errs[i] = m.Resolve(t.Context(), "image:"+name, true) })
	}
	wg.Wait()
	return out, errs
}

// TestAFarmReadsANameOnce or twice, however many of it ask for it at once, and again and again
// within the time that it is fresh for; and as often for one that is not there.
func TestAFarmReadsANameOnce(t *testing.T) {
	const nodes = 40
	w := newWorld(t)
	_, all := w.farmOf(t, t.TempDir(), nodes)
	w.publish(t, w.signer(t, trust.RolePublisher, "b"), w.image(t, "debian", content.Mesh(), 1))
	for _, name := range []string{"debian", "none"} {
		before := w.gets.Load()
		for range 3 {
			got, errs := resolveAll(t, all, name)
			for i, r := range got {
				if there := name == "debian"; there && (errs[i] != nil || r.Version != 1 || !r.Confirmed) || !there && !errors.Is(errs[i], content.ErrNotFound) {
					t.Fatalf("%s: %+v, %v", name, r, errs[i])
				}
			}
		}
		if n := w.gets.Load() - before; n < 1 || n > 3 { // the third where the disk is slow
			t.Errorf("%s: %d requests for %d nodes", name, n, nodes)
		}
	}
	before := w.gets.Load()
	if _, err := all[7].Lookup(t.Context(), content.KindImage, "debian", true); err != nil || w.gets.Load() != before+1 {
		t.Errorf("who has to be sure made %d requests: %v", w.gets.Load()-before, err)
	}
}

// TestLeadsThatFail: the next rank follows one that is gone, silent, or has no origin, and
// then this node; and each answer of the farm is right and confirmed.
func TestLeadsThatFail(t *testing.T) {
	gone := func(context.Context, Question) (Answer, error) { return Answer{}, content.ErrUnavailable }
	silent := func(ctx context.Context, _ Question) (Answer, error) { <-ctx.Done(); return Answer{}, ctx.Err() }
	unable := func(context.Context, Question) (Answer, error) { return Answer{}, nil }
	for what, tt := range map[string]struct {
		how   func(context.Context, Question) (Answer, error)
		ranks []int
		reads int64
	}{
		"the lead is gone":         {gone, []int{0}, 2},
		"the lead is silent":       {silent, []int{0}, 2},
		"the second has no origin": {unable, []int{1}, 2},
		"two are gone":             {gone, []int{0, 2}, 8}, // each reads for itself, beside what one could
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			x, _ := w.farmOf(t, t.TempDir(), 10)
			w.publish(t, w.signer(t, trust.RolePublisher, "b"), w.image(t, "debian", content.Mesh(), 1))
			leads, others := x.leads("debian")
			for _, i := range tt.ranks {
				x.answers[leads[i].peer()] = tt.how
			}
			before := w.gets.Load()
			got, errs := resolveAll(t, others, "debian")
			for i, r := range got {
				if errs[i] != nil || r.Version != 1 || !r.Confirmed {
					t.Errorf("%s: %+v, %v", what, r, errs[i])
				}
			}
			if n := w.gets.Load() - before; n != tt.reads {
				t.Errorf("%s: %d requests, want %d", what, n, tt.reads)
			}
		})
	}
}

// TestALeadThatLies passes off no older record, and no absence: alone it confirms nothing,
// against what was seen here two of them do not, and a word that is not its own, or of
// time to come, is none.
func TestALeadThatLies(t *testing.T) {
	w := newWorld(t)
	publisher := w.signer(t, trust.RolePublisher, "b")
	old := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
	now := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 2))
	honest := w.signer(t, trust.RoleNode, "a")
	for what, lie := range map[string]func(m *member, q Question) Answer{
		"an older record": func(m *member, _ Question) Answer { return vouched(t, m.signer, old, time.Now()) },
		"absence":         func(*member, Question) Answer { return Answer{Absent: true} },
		"another's word":  func(*member, Question) Answer { return vouched(t, honest, old, time.Now()) },
		"a time to come":  func(m *member, _ Question) Answer { return vouched(t, m.signer, old, time.Now().Add(time.Hour)) },
		"a name like it": func(m *member, _ Question) Answer {
			return vouched(t, m.signer, w.sealed(t, publisher, w.image(t, "debian2", content.Mesh(), 2), 9).Record, time.Now())
		},
		"one never written": func(m *member, _ Question) Answer {
			return vouched(t, m.signer, w.sealed(t, publisher, w.image(t, "debian", content.Mesh(), 3), 7).Record, time.Now())
		},
	} {
		x, _ := w.farmOf(t, t.TempDir(), 6)
		leads, others := x.leads("debian")
		for _, liar := range leads[:1] {
			x.answers[liar.peer()] = func(_ context.Context, q Question) (Answer, error) { return lie(liar, q), nil }
		}
		for _, m := range others {
			if r, err := m.Resolve(t.Context(), "debian", true); err != nil || r.Version != now.Version || !r.Confirmed {
				t.Errorf("%s: %+v, %v", what, r, err)
			}
		}
	}
	x, _ := w.farmOf(t, t.TempDir(), 6)
	leads, others := x.leads("debian")
	others[0].lookup(t, content.KindImage, "debian")
	for _, liar := range leads[:2] {
		x.answers[liar.peer()] = func(context.Context, Question) (Answer, error) { return vouched(t, liar.signer, old, time.Now()), nil }
	}
	w.ahead.Add(int64(2 * freshFor))
	if r, err := others[0].Resolve(t.Context(), "debian", true); err != nil || r.Version != now.Version || !r.Confirmed {
		t.Errorf("two liars, and it was seen here: %+v, %v", r, err)
	}
}

// TestARollbackAfterLeadsWords puts an older record back, or takes away what is there and
// puts it back then, behind a node that knows the name by its leads alone.
func TestARollbackAfterLeadsWords(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := newWorld(t)
		publisher := w.signer(t, trust.RolePublisher, "b")
		old := w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
		w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 2))
		x, _ := w.farmOf(t, t.TempDir(), 6)
		leads, others := x.leads("debian")
		m := others[0]
		if r, err := m.Resolve(t.Context(), "debian", true); err != nil || r.Version != 2 || !r.Confirmed {
			t.Fatalf("by its leads: %+v, %v", r, err)
		}
		m.asksOf(leads...)
		if gone {
			if err := w.store.Delete(t.Context(), "records/"+key(content.KindImage, "debian")); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Lookup(t.Context(), content.KindImage, "debian", true); !errors.Is(err, content.ErrNotFound) {
				t.Errorf("it is gone: %v", err)
			}
		}
		w.put(t, content.KindImage, "debian", old.Sealed)
		if k, err := m.Lookup(t.Context(), content.KindImage, "debian", true); err != nil || k.Version != 2 || k.Confirmed || k.Doubt == "" {
			t.Errorf("gone %v: %+v, %v", gone, k, err)
		}
	}
}

// TestLeadsWordsAreHearsay: what they confirmed is so no more once the origin is away, is
// nothing to do what can't be undone for, and after a restart neither.
func TestLeadsWordsAreHearsay(t *testing.T) {
	w := newWorld(t)
	x, _ := w.farmOf(t, t.TempDir(), 4)
	w.publish(t, w.signer(t, trust.RolePublisher, "b"), w.image(t, "debian", content.Mesh(), 1))
	_, others := x.leads("debian")
	m := others[0]
	if r, err := m.Resolve(t.Context(), "debian", true); err != nil || !r.Confirmed {
		t.Fatalf("%+v, %v", r, err)
	}
	w.away.Store(true)
	k := m.lookup(t, content.KindImage, "debian")
	if want(t, "the origin is away", k, 1, false); m.Sure(k) {
		t.Error("it is sure")
	}
	m.restart(t)
	want(t, "after a restart", m.lookup(t, content.KindImage, "debian"), 1, false)
}

// TestWhoMayAskALead: a member of the same farm, and no other.
func TestWhoMayAskALead(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RoleNode, "a")
	w.publish(t, w.signer(t, trust.RolePublisher, "b"), w.image(t, "debian", content.Mesh(), 1))
	w.publish(t, w.signer(t, trust.RoleNode, "c"), w.volume(t, "private", "c", 1))
	for _, tt := range []struct {
		from trust.Signer
		kind content.Kind
		name string
		want string
	}{
		{w.signer(t, trust.RoleNode, "a"), content.KindImage, "debian", "record"},
		{w.signer(t, trust.RoleNode, "a"), content.KindImage, "none", "absent"},
		{w.signer(t, trust.RoleNode, "a"), content.KindVolume, "private", "absent"},
		{w.signer(t, trust.RoleNode, "b"), content.KindImage, "other", "refused"},
		{w.signer(t, trust.RoleSeed, ""), content.KindImage, "other", "refused"},
		{w.signer(t, trust.RoleNode, "a"), content.KindImage, "../none", "refused"},
	} {
		before := w.gets.Load()
		a, err := m.Answer(t.Context(), tt.from.Chain.Identity(), Question{Kind: tt.kind, Name: tt.name, Lead: true})
		got := map[bool]string{true: "absent", false: "record"}[a.Absent]
		if err != nil {
			got = "refused"
		}
		if got != tt.want || err != nil && w.gets.Load() != before {
			t.Errorf("%s %q: %s (%v), %d requests, want %s", tt.kind, tt.name, got, err, w.gets.Load()-before, tt.want)
		}
	}
}

// TestNobodyIsFarBehind has a name written, time pass, members restart, and one of the farm
// say what it likes: whatever is resolved was at the origin within freshFor, and is
// confirmed.
func TestNobodyIsFarBehind(t *testing.T) {
	w := newWorld(t)
	x, all := w.farmOf(t, t.TempDir(), 4)
	publisher, rounds := w.signer(t, trust.RolePublisher, "b"), 0
	rapid.Check(t, func(t *rapid.T) {
		rounds++
		name := fmt.Sprint("x", rounds)
		liar := all[rapid.IntRange(0, len(all)-1).Draw(t, "liar")]
		var written []catalog.Record // the latest last
		var until []time.Time        // when each was replaced, and the absence before the first
		lie := 0
		clear(x.answers)
		x.answers[liar.peer()] = func(ctx context.Context, q Question) (Answer, error) {
			switch {
			case lie > len(written):
				return liar.Answer(ctx, all[0].self(), q)
			case lie == 0:
				return Answer{Absent: true}, nil
			}
			return vouched(t, liar.signer, written[lie-1], w.now()), nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				w.ahead.Add(int64(time.Millisecond))
				until = append(until, w.now())
				written = append(written, w.publish(t, publisher, w.image(t, name, content.Mesh(), byte(len(written)))))
				w.ahead.Add(int64(time.Millisecond))
			},
			"pass": func(t *rapid.T) {
				w.ahead.Add(int64(time.Duration(rapid.IntRange(1, 8000).Draw(t, "ms")) * time.Millisecond))
			},
			"restart": func(t *rapid.T) { all[rapid.IntRange(0, len(all)-1).Draw(t, "who")].restart(t) },
			"lie":     func(t *rapid.T) { lie = rapid.IntRange(0, len(written)+1).Draw(t, "what") },
			"resolve": func(t *rapid.T) {
				r, err := all[rapid.IntRange(0, len(all)-1).Draw(t, "who")].Resolve(t.Context(), "image:"+name, true)
				if err != nil && !errors.Is(err, content.ErrNotFound) || err == nil && !r.Confirmed {
					t.Fatalf("%+v, %v", r, err)
				}
				if v := int(r.Version); v < len(written) && w.now().Sub(until[v]) > freshFor+time.Second {
					t.Fatalf("version %d, which was replaced %s ago", v, w.now().Sub(until[v]))
				}
			},
		})
	})
}

// TestAHighVersionCostsLittle: whoever tells a lead of versions that there are not has it
// read the name once in anewAfter, and one that was written a while ago is read.
func TestAHighVersionCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, all := w.farmOf(t, t.TempDir(), 2)
		publisher := w.signer(t, trust.RolePublisher, "b")
		w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 1))
		lead, asker := all[0], all[1].self()
		ask := func() Answer {
			t.Helper()
			a, err := lead.Answer(t.Context(), asker, Question{Kind: content.KindImage, Name: "debian", Lead: true, Version: 1 << 40})
			if err != nil || len(a.Sealed) == 0 {
				t.Fatalf("%+v, %v", a, err)
			}
			return a
		}
		ask()
		before := w.gets.Load()
		for range 100 {
			ask()
		}
		if n := w.gets.Load() - before; n > 0 {
			t.Errorf("%d requests for a version that was made up", n)
		}
		w.publish(t, publisher, w.image(t, "debian", content.Mesh(), 2))
		pause(t, anewAfter+time.Millisecond)
		before = w.gets.Load()
		if a := ask(); a.Age > anewAfter {
			t.Errorf("the word is %s old", a.Age)
		}
		if n := w.gets.Load() - before; n != 1 {
			t.Errorf("%d requests for a later version", n)
		}
	})
}

// TestStrangersSpendNoLeads: what strangers look for through one member costs the others
// of its farm nothing of what they have for each other.
func TestStrangersSpendNoLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		x, all := w.farmOf(t, t.TempDir(), 5)
		asked := 0
		for _, m := range all {
			x.answers[m.peer()] = func(context.Context, Question) (Answer, error) { asked++; return Answer{}, nil }
		}
		for i := range strangersBurst {
			if _, err := all[0].Resolve(t.Context(), fmt.Sprintf("none-%d", i), false); !errors.Is(err, content.ErrNotFound) {
				t.Fatal(err)
			}
		}
		if asked > 0 {
			t.Errorf("leads were asked %d times", asked)
		}
	})
}

// TestALeadsWordWaitsForNoDisk: what a lead has read it says, while its disk is busy; when
// it ends, all is there for good.
func TestALeadsWordWaitsForNoDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, all := w.farmOf(t, t.TempDir(), 2)
		w.publish(t, w.signer(t, trust.RolePublisher, "b"), w.image(t, "debian", content.Mesh(), 1))
		busy, synced := make(chan struct{}), 0
		all[0].index.flush = func(f *os.File) error { <-busy; synced++; return f.Sync() }
		a, err := all[0].Answer(t.Context(), all[1].self(), Question{Kind: content.KindImage, Name: "debian", Lead: true})
		if err != nil || len(a.Sealed) == 0 {
			t.Errorf("%+v, %v", a, err)
		}
		if _, err := all[0].Resolve(t.Context(), "image:debian", true); err != nil {
			t.Error(err)
		}
		close(busy)
		if all[0].restart(t); synced == 0 {
			t.Error("it never came to the disk")
		}
	})
}
