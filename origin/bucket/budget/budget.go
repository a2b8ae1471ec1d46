// Package budget bounds what a node asks of one store: requests a second, bytes a second,
// and requests in flight. Within that, who is needed goes first, and askers share evenly. A
// store that asks for fewer requests is sent fewer.
package budget

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

const (
	// InFlightDefault is how many requests wait for their bytes at once: as many connections
	// as a store is given, but for some that writers find.
	InFlightDefault = 48
	// BytesMax is how many bytes are paid for at once: a little at the least rates, so that
	// who is needed waits for no more.
	BytesMax = 64 << 10
	// burstBytes lets a run and its neighbours through at once.
	burstBytes = 4 << 20
	// flightMax is how long the reads in flight, of runMax each, may take at the rate of
	// bytes: fewer are let out where it is low, as who reads gives up after minutes.
	flightMax = 20 * time.Second
	runMax    = 1 << 20 // of what is read at once, as a rule
	// burst is for how long a pace that was not used may be made up for, at a store that has
	// asked for fewer requests.
	burst = time.Second / 20
	// againMax is how soon who waits is looked at again: the pace may have risen.
	againMax = 250 * time.Millisecond
)

// ErrNoTurn says that a request was not sent, as its turn did not come in time: it says nothing of the store.
var ErrNoTurn = errors.New("its turn did not come in time")

// Limits are what a node may ask of a store.
type Limits struct {
	// Requests of all kinds a second, and Bytes that are read a second; 0 is no limit.
	Requests float64
	Bytes    int64
	// InFlight bounds the reads that are under way; 0 is InFlightDefault. A low rate of bytes lowers it.
	InFlight int
}

// Budget is what is left of the limits, and who waits for it. Safe for concurrent use.
type Budget struct {
	limits    Limits
	throttled prometheus.Counter

	mu       sync.Mutex // guards what follows
	pace     pace
	requests gate
	bytes    gate
	out      [classes]int // in flight, by the class that they were sent in
	due      *time.Timer  // nil when nobody waits for time to pass
}

// gate is where one thing is given out.
type gate struct {
	queue
	rate *rate.Limiter
}

// New returns a whole budget.
func New(limits Limits) *Budget {
	if limits.InFlight == 0 {
		limits.InFlight = InFlightDefault
	}
	if atOnce := limits.Bytes * int64(flightMax.Seconds()) / runMax; limits.Bytes > 0 {
		limits.InFlight = min(limits.InFlight, max(classes, int(min(atOnce, math.MaxInt32))))
	}
	allowed := rate.Inf
	if limits.Requests > 0 {
		allowed = rate.Limit(limits.Requests)
	}
	b := &Budget{limits: limits, pace: pace{allowed: float64(allowed)}, throttled: prometheus.NewCounter(opts("throttled_total", "Requests that the origin refused, as there were too many."))}
	b.requests.rate = rate.NewLimiter(allowed, b.burst())
	b.bytes.rate = rate.NewLimiter(rate.Inf, burstBytes)
	if limits.Bytes > 0 {
		b.bytes.rate.SetLimit(rate.Limit(limits.Bytes))
	}
	return b
}

func opts(name, help string) prometheus.CounterOpts {
	return prometheus.CounterOpts{Namespace: "grange", Subsystem: "origin", Name: name, Help: help}
}

// burst is how many requests may be sent at once that were not sent before.
func (b *Budget) burst() int { return int(max(1, min(b.limits.Requests, math.MaxInt32))) }

// Collectors returns the metrics.
func (b *Budget) Collectors() []prometheus.Collector {
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts(name, help)), func() float64 {
			b.mu.Lock()
			defer b.mu.Unlock()
			return float64(value())
		})
	}
	return []prometheus.Collector{
		gauge("waiting", "Reads of the origin that wait for their turn.", func() int { return len(b.requests.waiting) + len(b.bytes.waiting) }),
		gauge("in_flight", "Reads of the origin that are under way.", func() int { return b.upTo(Needed) }),
		b.throttled,
	}
}

// Request is a read that may be sent. It is in flight until End.
type Request struct {
	Sent time.Time // when it might be

	b   *Budget
	of  *ticket
	end sync.Once
}

// Take waits until a request may be sent, with the turn that ctx has. When ctx ends before, it is ErrNoTurn.
func (b *Budget) Take(ctx context.Context) (*Request, error) {
	t := &ticket{turn: turnOf(ctx), n: 1, given: make(chan struct{})}
	if err := b.wait(ctx, &b.requests, t); err != nil {
		return nil, err
	}
	return &Request{Sent: time.Now(), b: b, of: t}, nil
}

// Read waits until n bytes, BytesMax at most, that a request has brought are within the budget.
func (r *Request) Read(ctx context.Context, n int) error {
	if r.b.limits.Bytes == 0 || n == 0 {
		return nil
	}
	return r.b.wait(ctx, &r.b.bytes, &ticket{turn: r.of.turn, n: n, given: make(chan struct{})})
}

// End ends a request, once.
func (r *Request) End() {
	r.end.Do(func() {
		r.b.mu.Lock()
		defer r.b.mu.Unlock()
		r.b.out[r.of.class]--
		r.b.serve()
	})
}

// Write counts a request that waits for nobody, and returns when it was sent.
func (b *Budget) Write() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.requests.rate.ReserveN(now, 1)
	b.pace.send(now)
	return now
}

// SlowDown learns that the store refused a request that was sent then, as there were too many.
func (b *Budget) SlowDown(sent time.Time) {
	b.throttled.Inc()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pace.slowDown(sent, time.Now())
}

func (b *Budget) wait(ctx context.Context, g *gate, t *ticket) error {
	b.mu.Lock()
	g.push(t)
	b.serve()
	b.mu.Unlock()
	for {
		select {
		case <-t.given:
			return nil
		case <-t.turn.raised:
			b.again()
		case <-ctx.Done():
			b.mu.Lock()
			defer b.mu.Unlock()
			if !g.remove(t) { // it was given
				return nil
			}
			b.serve()
			return fmt.Errorf("%w: %w", ErrNoTurn, context.Cause(ctx))
		}
	}
}

func (b *Budget) again() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serve()
}

// serve gives what there is to whoever is next. The caller holds mu.
func (b *Budget) serve() {
	if b.due != nil {
		b.due.Stop()
	}
	now := time.Now()
	b.keepPace(now)
	wait := b.requests.serve(now, b.mayGo, func(t *ticket) {
		b.out[t.class]++
		b.pace.send(now)
	})
	wait = min(wait, b.bytes.serve(now, func(Class) bool { return true }, func(*ticket) {}))
	if wait < never {
		b.due = time.AfterFunc(wait, b.again)
	}
}

// keepPace has as many requests given out as the store takes.
func (b *Budget) keepPace(now time.Time) {
	pace, most := b.pace.at(now), b.burst()
	if pace < b.pace.allowed {
		most = max(1, int(pace*burst.Seconds()))
	}
	b.requests.rate.SetLimitAt(now, rate.Limit(pace))
	b.requests.rate.SetBurstAt(now, most)
}

// mayGo reports whether a request of a class may be in flight beside those that are. Those of a class and of
// all below it have so many quarters of the places, so that what is more urgent finds one.
func (b *Budget) mayGo(c Class) bool {
	return b.upTo(Needed) < b.limits.InFlight && b.upTo(c) < max(1, b.limits.InFlight*int(c+1)/classes)
}

func (b *Budget) upTo(c Class) (n int) {
	for _, out := range b.out[:c+1] {
		n += out
	}
	return n
}

// serve gives to whoever is next while there is something, and returns when there will be.
func (g *gate) serve(now time.Time, may func(Class) bool, give func(*ticket)) (again time.Duration) {
	for t := g.next(may); t != nil; t = g.next(may) {
		if !g.rate.AllowN(now, t.n) {
			lacks := float64(t.n) - g.rate.TokensAt(now)
			return max(time.Millisecond, min(againMax, time.Duration(lacks/float64(g.rate.Limit())*float64(time.Second))))
		}
		g.queue.serve(t)
		give(t)
		close(t.given)
	}
	return never
}

// never is how long nobody waits for whom time brings nothing.
const never = time.Duration(math.MaxInt64)
