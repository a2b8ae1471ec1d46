package budget_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/bucket/budget"
)

// asker asks without pause, in so many places at once, for reads that take so long to begin
// and bring so much, in pieces.
type asker struct {
	name     string
	class    budget.Class
	workers  int
	answer   time.Duration
	size     int
	piece    int
	patience time.Duration // with a turn; 0 is any

	sent, bytes int // in the end
}

// crowd is who asks one budget.
type crowd struct {
	b      *budget.Budget
	askers []*asker

	mu        sync.Mutex
	out, most map[budget.Class]int // in flight, in a class and all below
}

func (c *crowd) count(class budget.Class, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; class <= budget.Needed; class++ {
		c.out[class] += n
		c.most[class] = max(c.most[class], c.out[class])
	}
}

// ask has all ask for so long, in a bubble, and nothing is left of it.
func (c *crowd) ask(t *testing.T, span time.Duration) {
	c.out, c.most = map[budget.Class]int{}, map[budget.Class]int{}
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	var work sync.WaitGroup
	for _, a := range c.askers {
		for range a.workers {
			work.Go(func() {
				for ctx.Err() == nil {
					c.read(ctx, t, a)
				}
			})
		}
	}
	work.Wait()
	for name, left := range metrics(t, c.b) {
		if left != 0 && name != "grange_origin_throttled_total" {
			t.Errorf("%s is %v when nobody asks any more", name, left)
		}
	}
}

func (c *crowd) read(ctx context.Context, t *testing.T, a *asker) {
	turn := budget.With(ctx, budget.NewTurn(a.class, a.name))
	if a.patience > 0 {
		var cancel context.CancelFunc
		turn, cancel = context.WithTimeout(turn, a.patience)
		defer cancel()
	}
	r, err := c.b.Take(turn)
	if err != nil {
		if !errors.Is(err, budget.ErrNoTurn) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		return
	}
	defer r.End()
	c.count(a.class, 1)
	defer c.count(a.class, -1)
	<-time.After(a.answer)
	read := 0
	for read < a.size && r.Read(ctx, a.piece) == nil && ctx.Err() == nil {
		read += a.piece
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a.sent++
	a.bytes += read
}

func metrics(t *testing.T, b *budget.Budget) map[string]float64 {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(b.Collectors()...)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		out[f.GetName()] = f.Metric[0].GetGauge().GetValue() + f.Metric[0].GetCounter().GetValue()
	}
	return out
}

// TestLimitsHold has anybody ask for anything, some without patience: no more is sent, read
// or in flight than the limits allow, and not much less than the narrowest of them.
func TestLimitsHold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := budget.Limits{
			Requests: rapid.SampledFrom([]float64{0, 1, 20, 500}).Draw(rt, "requests"),
			Bytes:    rapid.SampledFrom([]int64{0, 128 << 10, 20 << 20}).Draw(rt, "bytes"),
			InFlight: rapid.SampledFrom([]int{1, 4, 48}).Draw(rt, "in flight"),
		}
		a := &asker{
			class: budget.Class(rapid.IntRange(0, int(budget.Needed)).Draw(rt, "class")), workers: rapid.IntRange(1, 60).Draw(rt, "workers"),
			answer: rapid.SampledFrom([]time.Duration{5 * time.Millisecond, 100 * time.Millisecond}).Draw(rt, "answer"),
			size:   128 << 10, piece: rapid.SampledFrom([]int{16 << 10, budget.BytesMax}).Draw(rt, "piece"),
		}
		hasty := &asker{name: "hasty", class: a.class, workers: rapid.IntRange(0, 3).Draw(rt, "hasty"), answer: a.answer, size: a.size, piece: a.piece, patience: 30 * time.Millisecond}
		c := &crowd{b: budget.New(l), askers: []*asker{a, hasty}}
		const seconds = 10
		synctest.Test(t, func(t *testing.T) { c.ask(t, seconds*time.Second) })
		inFlight := l.InFlight
		if l.Bytes == 128<<10 {
			inFlight = min(inFlight, 4)
		}
		places := max(1, inFlight*int(a.class+1)/4)
		workers := a.workers + hasty.workers
		sent, bytes := float64(a.sent+hasty.sent), float64(a.bytes+hasty.bytes)
		most, mostBytes := seconds*float64(min(places, workers))/a.answer.Seconds(), seconds*float64(l.Bytes)+4<<20
		if l.Requests > 0 {
			most = min(most, (seconds+1)*l.Requests)
		}
		if l.Bytes == 0 {
			mostBytes = most * float64(a.size)
		}
		slack := float64(workers + 1) // they have begun
		if sent > most+slack || bytes > mostBytes+slack*float64(a.size) || c.most[a.class] > places {
			rt.Fatalf("%+v: %v requests, at most %v; %v bytes, at most %v; %d in flight, at most %d", l, sent, most, bytes, mostBytes, c.most[a.class], places)
		}
		if sent < 0.85*most-slack && bytes < 0.85*mostBytes-slack*float64(a.size) {
			rt.Fatalf("%+v: only %v requests, of %v, and %v bytes, of %v", l, sent, most, bytes, mostBytes)
		}
	})
}

// TestThinRatesEndWhatBegins: at the least rate a read that was sent ends soon, however many
// ask, and all of the rate is used.
func TestThinRatesEndWhatBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, size, span = 128 << 10, 1 << 20, 10 * time.Minute
		b := budget.New(budget.Limits{Bytes: rate})
		a := &asker{class: budget.Needed, workers: 100, answer: 100 * time.Millisecond, size: size, piece: budget.BytesMax, patience: span}
		c := &crowd{b: b, askers: []*asker{a}}
		c.ask(t, span)
		if least := int(rate * span.Seconds() * 0.95); a.bytes < least {
			t.Errorf("%d bytes were read, of %d", a.bytes, least)
		}
		if most := time.Duration(c.most[budget.Needed]) * size * time.Second / rate; most > time.Minute {
			t.Errorf("a read takes %s once it is sent", most)
		}
	})
}

// evenly fails unless all have what the others have, within a fifth.
func evenly(t *testing.T, askers []*asker, has func(*asker) int) {
	t.Helper()
	sum := 0
	for _, a := range askers {
		sum += has(a)
	}
	mean := sum / len(askers)
	for _, a := range askers {
		if n := has(a); mean == 0 || n < mean*8/10 || n > mean*12/10 {
			t.Errorf("%s has %d, the others on average %d", a.name, n, mean)
		}
	}
}

// TestAskersShareEvenly: however many requests somebody has, and however small the pieces
// are that come, each has as much as the next.
func TestAskersShareEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		some := []*asker{{name: "1", workers: 1}, {name: "2", workers: 2}, {name: "8", workers: 8}, {name: "20", workers: 20}}
		for _, a := range some {
			a.class, a.answer = budget.Prefetch, 5*time.Millisecond
		}
		requests := &crowd{b: budget.New(budget.Limits{Requests: 50}), askers: some}
		requests.ask(t, time.Minute)
		evenly(t, some, func(a *asker) int { return a.sent })

		other := []*asker{{name: "small", workers: 1, piece: 4 << 10}, {name: "large", workers: 1, piece: budget.BytesMax}, {name: "many", workers: 6, piece: 32 << 10}}
		for _, a := range other {
			a.class, a.size = budget.Needed, 1<<20
		}
		bytes := &crowd{b: budget.New(budget.Limits{Bytes: 4 << 20}), askers: other}
		bytes.ask(t, time.Minute)
		evenly(t, other, func(a *asker) int { return a.bytes })
	})
}

// TestUrgentGoFirst: who is needed has most of what there is, at once, and nobody starves.
func TestUrgentGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		needed := &asker{name: "a", class: budget.Needed, workers: 8, size: 256 << 10, piece: budget.BytesMax}
		c := &crowd{b: budget.New(budget.Limits{Requests: 100, Bytes: 20 << 20, InFlight: 12}), askers: []*asker{needed}}
		for class := budget.Seeding; class < budget.Needed; class++ {
			c.askers = append(c.askers, &asker{name: "b", class: class, workers: 4, size: 256 << 10, piece: budget.BytesMax})
		}
		c.ask(t, time.Minute)
		sum := 0
		for _, a := range c.askers {
			sum += a.bytes
		}
		for _, a := range c.askers[1:] {
			if a.bytes < sum/200 {
				t.Errorf("class %d has %d bytes of %d", a.class, a.bytes, sum)
			}
		}
		if needed.bytes < sum*8/10 {
			t.Errorf("who is needed has %d bytes of %d", needed.bytes, sum)
		}
	})
}

// TestNeededFindsAPlace: what is less urgent leaves some, and what is raised is let in.
func TestNeededFindsAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(budget.Limits{InFlight: 4})
		take := func(turn *budget.Turn) <-chan *budget.Request {
			out := make(chan *budget.Request, 1)
			go func() {
				r, err := b.Take(budget.With(t.Context(), turn))
				if err != nil {
					t.Error(err)
				}
				out <- r
			}()
			synctest.Wait()
			return out
		}
		var out []<-chan *budget.Request
		given := func(n int) {
			t.Helper()
			if synctest.Wait(); int(metrics(t, b)["grange_origin_in_flight"]) != n {
				t.Fatalf("%v, want %d in flight", metrics(t, b), n)
			}
		}
		for range 3 {
			out = append(out, take(budget.NewTurn(budget.Prefetch, "a")))
		}
		given(2)
		late := budget.NewTurn(budget.Prefetch, "b")
		out = append(out, take(late))
		given(2)
		late.Raise(budget.Needed)
		late.Raise(budget.Prefetch) // which it is not any more
		given(3)
		out = append(out, take(budget.NewTurn(budget.Needed, "c")))
		given(4)
		out = append(out, take(budget.NewTurn(budget.Seeding, "d")))
		given(4)
		for _, i := range []int{0, 1, 3, 4, 2, 5} { // as they are let in
			(<-out[i]).End()
		}
		given(0)
	})
}

// TestPaceFollowsTheStore: a store that takes so many requests a second, and refuses more,
// is sent about that, also when it changes its mind, and as many as there are when it takes all.
func TestPaceFollowsTheStore(t *testing.T) {
	for takes, limit := range map[float64]float64{5: 0, 60: 3000, 400: 0} {
		synctest.Test(t, func(t *testing.T) { follow(t, budget.New(budget.Limits{Requests: limit}), takes) })
	}
}

func follow(t *testing.T, b *budget.Budget, takes float64) {
	store := rate.NewLimiter(rate.Limit(takes), max(1, int(takes/20)))
	var mu sync.Mutex
	sent, refused := 0.0, 0.0
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	const workers, answer = 40, 50 * time.Millisecond
	for range workers {
		work.Go(func() {
			for ctx.Err() == nil {
				r, err := b.Take(ctx)
				if err != nil {
					return
				}
				ok := store.Allow()
				<-time.After(answer)
				mu.Lock()
				if sent++; !ok {
					refused++
					b.SlowDown(r.Sent)
				}
				mu.Unlock()
				r.End()
			}
		})
	}
	measure := func(settle, span time.Duration) (served, lost float64) {
		<-time.After(settle)
		mu.Lock()
		sent, refused = 0, 0
		mu.Unlock()
		<-time.After(span)
		mu.Lock()
		defer mu.Unlock()
		return (sent - refused) / span.Seconds(), refused / span.Seconds()
	}
	for _, share := range []float64{1, 0.25, 1} {
		store.SetLimit(rate.Limit(takes * share))
		served, lost := measure(15*time.Second, 30*time.Second)
		if want := takes * share; served < 0.75*want || lost > 0.1*want+1 {
			t.Errorf("a store that takes %v a second served %v and refused %v", want, served, lost)
		}
	}
	store.SetLimit(rate.Inf)
	if served, lost := measure(20*time.Second, 5*time.Second); served < 0.95*workers/answer.Seconds() || lost > 0 {
		t.Errorf("a store that takes all served %v and refused %v", served, lost)
	}
	cancel()
	work.Wait()
}
