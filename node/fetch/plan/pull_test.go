package plan_test

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

const (
	pullChunk  = 128 << 10
	pullChunks = 8 // of a run
	pullDelay  = time.Millisecond / 2
	pullWindow = 8 // runs
)

// pull is one member that prefetches from others which send at rates of their own, each
// what it is asked for in that order, in virtual time.
type pull struct {
	t     *testing.T
	mind  *plan.Member
	root  *plan.Root
	order *plan.Order
	now   time.Duration
	queue pullQueue
	seq   int
	peers map[plan.Peer]*sender
	under int
	taken map[plan.Peer]int // chunks that came first from each
	twice int               // chunks that came again
	done  time.Duration
	each  []time.Duration // how long each read of a guest took
}

// sender sends a chunk each so often, whoever it is for.
type sender struct {
	each time.Duration
	free time.Duration // when the line is
	// gone sends nothing any more: a killed one refuses at once, and what an unplugged or
	// mute one is asked for ends when the exchange has waited for it.
	gone bool
	why  time.Duration
}

type pullEvent struct {
	at  time.Duration
	seq int
	do  func()
}

type pullQueue []pullEvent

func (q pullQueue) Len() int { return len(q) }
func (q pullQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q pullQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *pullQueue) Push(x any)   { *q = append(*q, x.(pullEvent)) }
func (q *pullQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

func (p *pull) after(d time.Duration, do func()) {
	p.seq++
	heap.Push(&p.queue, pullEvent{p.now + d, p.seq, do})
}

func (p *pull) clock() time.Time { return epoch.Add(p.now) }

// newPull is of so many runs that all senders show; near says whether they are of the
// member's farm.
func newPull(t *testing.T, runs int, near bool, each ...time.Duration) *pull {
	p := &pull{t: t, mind: plan.NewMember("reader", "f"), peers: map[plan.Peer]*sender{}, taken: map[plan.Peer]int{}}
	p.mind.Asks = true
	p.root = p.mind.Root("root")
	farm := []plan.Peer{"reader"}
	var all content.Bitmap
	for i := range uint64(runs * pullChunks) {
		all.Add(i)
	}
	for i, each := range each {
		name := plan.Peer(fmt.Sprint("p", i))
		p.peers[name] = &sender{each: each}
		if err := p.root.Show(name, !near, true, all.Clone()); err != nil {
			t.Fatal(err)
		}
		if near {
			farm = append(farm, name)
		} else {
			p.root.List(name, "g")
		}
	}
	p.mind.Farm(farm)
	p.root.Strangers()
	for _, q := range farm {
		p.root.Met(q, false)
	}
	p.order = p.root.Order()
	for r := range runs {
		p.order.Add(fmt.Sprint("pack/", r), uint64(r*pullChunks), r)
	}
	p.order.Whole()
	return p
}

// run pulls all, and returns how long that took.
func (p *pull) run() time.Duration {
	p.after(0, p.next)
	p.play()
	return p.done
}

func (p *pull) play() {
	for len(p.queue) > 0 && p.done == 0 {
		e := heap.Pop(&p.queue).(pullEvent)
		p.now = e.at
		e.do()
	}
	if p.done == 0 {
		p.t.Fatal("it did not end")
	}
}

func (p *pull) next() {
	for p.under < pullWindow {
		o := p.order.Next(p.clock())
		if o == nil {
			break
		}
		p.under++
		p.begin(o)
	}
	if p.under == 0 {
		p.done = p.now
	}
}

// pulled is a run on its way.
type pulled struct {
	p       *pull
	job     *plan.Job
	flights []*plan.Flight
	dropped map[plan.Peer]*bool
	over    bool
	woken   time.Time
	then    func() // at the end
}

func (p *pull) begin(o *plan.Ordered) {
	r := p.fetch(plan.Config{Key: fmt.Sprint("pack/", o.Of)}, o.Of.(int)*pullChunks, pullChunks)
	r.then = func() {
		p.under--
		for _, last := range p.order.Came(o) {
			last.Of.(*pulled).step(plan.Event{Kind: plan.Endgame})
		}
		p.next()
	}
	o.Of = r
	r.step(plan.Event{Kind: plan.Start})
}

// fetch is of some chunks of a run.
func (p *pull) fetch(cfg plan.Config, from, n int) *pulled {
	r := &pulled{p: p, dropped: map[plan.Peer]*bool{}}
	var objects []plan.Wanted
	for i := range n {
		objects = append(objects, plan.Wanted{Object: new(plan.Object), Index: uint64(from + i), Size: pullChunk})
	}
	cfg.Root = p.root
	r.flights, r.job = p.mind.Join(cfg, objects)
	return r
}

// read has a guest read so many chunks, each of a run of its own, one after the other.
func (p *pull) read(n int) []time.Duration {
	var next func(i int)
	next = func(i int) {
		if i == n {
			p.done = p.now
			return
		}
		began := p.now
		r := p.fetch(plan.Config{Key: fmt.Sprint("pack/", i), Guest: true, Hurry: true}, i*pullChunks, 1)
		r.then = func() {
			p.each = append(p.each, p.now-began)
			next(i + 1)
		}
		r.step(plan.Event{Kind: plan.Start})
	}
	p.after(0, func() { next(0) })
	p.play()
	slices.Sort(p.each)
	return p.each
}

func (r *pulled) step(e plan.Event) {
	if r.over {
		return
	}
	e.Job = r.job
	for _, a := range r.p.mind.Step(r.p.clock(), e) {
		switch a.Kind {
		case plan.Ask:
			dropped := new(bool)
			r.dropped[a.Peer] = dropped
			r.p.send(r, a.Peer, dropped)
		case plan.Drop:
			*r.dropped[a.Peer] = true
			r.p.mind.Stall(a.Peer, r.p.clock(), a.Quiet)
		case plan.Try:
			r.p.after(2*pullDelay, func() {
				if s := r.p.peers[a.Peer]; s.gone {
					r.p.mind.Fail(a.Peer, r.p.clock())
				} else {
					r.p.mind.Work(a.Peer, r.p.clock())
				}
			})
		case plan.Done:
			r.over = true
			for _, d := range r.dropped {
				*d = true
			}
			r.then()
			return
		default:
			r.p.t.Fatalf("%+v", a)
		}
	}
	if at := r.job.Wake(); !at.IsZero() && at != r.woken {
		r.woken = at
		r.p.after(at.Sub(r.p.clock()), func() {
			if r.woken == at {
				r.step(plan.Event{Kind: plan.Woke})
			}
		})
	}
}

// send has a member send what is missing, chunk by chunk.
func (p *pull) send(r *pulled, to plan.Peer, dropped *bool) {
	s := p.peers[to]
	var chunk func(i int)
	chunk = func(i int) {
		if *dropped {
			return
		}
		if s.gone {
			p.after(s.why, func() {
				if !*dropped {
					p.mind.Fail(to, p.clock())
					r.step(plan.Event{Kind: plan.Answered, Peer: to, Why: "silent, or gone"})
				}
			})
			return
		}
		if i == len(r.flights) {
			r.step(plan.Event{Kind: plan.Answered, Peer: to})
			return
		}
		s.free = max(s.free, p.now) + s.each
		p.after(s.free-p.now, func() {
			if *dropped {
				return
			}
			if _, first := r.flights[i].End(); first {
				p.taken[to]++
				r.p.mind.Step(p.clock(), plan.Event{Kind: plan.Brought, Job: r.job, Peer: to, Bytes: pullChunk})
			} else {
				p.twice++
			}
			chunk(i + 1)
		})
	}
	p.after(2*pullDelay, func() { chunk(0) })
}

// TestASlowPeerHoldsUpNobody: of eight that have all of an image one sends a hundredth as
// fast as the others, from the start or from a moment on. A pull takes no longer than a
// tenth more than without it, whether they are of this farm or elsewhere, and little comes
// twice.
func TestASlowPeerHoldsUpNobody(t *testing.T) {
	const each, runs, slowness = 2 * time.Millisecond, 2048, 100 // 62 MiB/s
	rates := slices.Repeat([]time.Duration{each}, 8)
	for _, near := range []bool{true, false} {
		without := newPull(t, runs, near, rates[:7]...).run()
		for _, slow := range []int{0, 5} {
			for _, from := range []time.Duration{0, time.Second} {
				p := newPull(t, runs, near, rates...)
				s := p.peers[plan.Peer(fmt.Sprint("p", slow))]
				p.after(from, func() { s.each = slowness * each })
				took := p.run()
				if took > without*11/10 {
					t.Errorf("p%d of this farm %t, slow from %s on: a pull takes %s, without it %s", slow, near, from, took, without)
				}
				if p.twice > runs*pullChunks/50 {
					t.Errorf("%d chunks came twice", p.twice)
				}
			}
		}
	}
}

// TestTheLastRunsAreAskedOfTwo: a slow member of the farm was asked for a part of a small
// image, which is here all the same before that was to be found out by its time.
func TestTheLastRunsAreAskedOfTwo(t *testing.T) {
	const each, soon = 2 * time.Millisecond, 125 * time.Millisecond
	for slow := range 8 {
		rates := slices.Repeat([]time.Duration{each}, 8)
		rates[slow] = 100 * each
		p := newPull(t, 16, true, rates...)
		if took := p.run(); took > soon {
			t.Errorf("p%d is slow: it took %s", slow, took)
		}
	}
}

// TestASlowPeerElsewhereIsPassedOver within 2 s, though it does send, and what is asked of
// members elsewhere is asked of one at a time.
func TestASlowPeerElsewhereIsPassedOver(t *testing.T) {
	const each = 2 * time.Millisecond
	for slow := range 8 {
		rates := slices.Repeat([]time.Duration{each}, 8)
		rates[slow] = 1000 * each
		p := newPull(t, 64, false, rates...)
		if took := p.run(); took > 2*time.Second {
			t.Errorf("p%d is slow: it took %s", slow, took)
		}
	}
}

// TestAGuestOutlivesItsPeers: of eight that have what a guest reads, one is killed, mute or
// unplugged, or slow from a moment on. Each read comes, none takes longer than a silent
// member is waited for, and the slowest of a hundred no second longer than before.
func TestAGuestOutlivesItsPeers(t *testing.T) {
	const each, reads, from = 2 * time.Millisecond, 2000, 200 * time.Millisecond
	for what, fault := range map[string]func(*sender){
		"killed":            func(s *sender) { s.gone, s.why = true, pullDelay },
		"mute or unplugged": func(s *sender) { s.gone, s.why = true, 2*time.Second },
		"slow":              func(s *sender) { s.each *= 1000 },
	} {
		for _, near := range []bool{true, false} {
			rates := slices.Repeat([]time.Duration{each}, 8)
			before := newPull(t, reads, near, rates...).read(reads)
			p := newPull(t, reads, near, rates...)
			p.after(from, func() { fault(p.peers["p3"]) })
			took := p.read(reads)
			if len(took) != reads || took[reads-1] > 2100*time.Millisecond {
				t.Errorf("%s, of this farm %t: %d of %d reads, the slowest %s", what, near, len(took), reads, took[len(took)-1])
			}
			if added := took[reads*99/100] - before[reads*99/100]; added > time.Second {
				t.Errorf("%s, of this farm %t: the slowest of a hundred take %s longer", what, near, added)
			}
		}
	}
}

// TestOrderCounts: whatever members show, take back and forget, each run is handed out once;
// those that a member of the farm shows, the rarest first, and of the others a few.
func TestOrderCounts(t *testing.T) {
	const runs = 40
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := plan.NewMember("self", "f")
		m.Farm([]plan.Peer{"self", "p0", "p1", "p2", "p3"})
		r := m.Root("root")
		o := r.Order()
		shows := map[plan.Peer]map[uint64]bool{}
		left := map[uint64]bool{}
		count := func(at uint64) (n int) {
			for _, s := range shows {
				if s[at] {
					n++
				}
			}
			return n
		}
		for range 20 {
			change(t, rng, r, shows)
		}
		for i := range uint64(runs) {
			o.Add(fmt.Sprint("pack/", i), i, i)
			left[i] = true
		}
		now := epoch
		for len(left) > 0 {
			change(t, rng, r, shows)
			now = now.Add(time.Millisecond)
			e := o.Next(now)
			if e == nil {
				t.Fatalf("seed %d: nothing is under way, and none of %d is asked for", seed, len(left))
			}
			at := e.Of.(uint64)
			if !left[at] {
				t.Fatalf("run %d is handed out again", at)
			}
			delete(left, at)
			for other := range left {
				if n := count(other); count(at) > 0 && n > 0 && n < count(at) {
					t.Fatalf("seed %d: run %d is asked for, shown by %d, before %d, shown by %d", seed, at, count(at), other, n)
				}
			}
			o.Came(e)
		}
		if o.Next(now) != nil {
			t.Fatal("more runs than were added")
		}
	}
}

// change has some member show more or else, lack something, or go.
func change(t *testing.T, rng *rand.Rand, r *plan.Root, shows map[plan.Peer]map[uint64]bool) {
	p := plan.Peer(fmt.Sprint("p", rng.IntN(4)))
	var b content.Bitmap
	set := map[uint64]bool{}
	for range rng.IntN(20) {
		at := uint64(rng.IntN(40))
		b.Add(at)
		set[at] = true
	}
	switch rng.IntN(5) {
	case 0:
		r.Drop(p)
		delete(shows, p)
	case 1:
		at := uint64(rng.IntN(40))
		r.Lacks(p, []uint64{at})
		delete(shows[p], at)
	case 2:
		shows[p] = set
		if err := r.Show(p, false, true, &b); err != nil {
			t.Fatal(err)
		}
	default:
		if shows[p] == nil {
			shows[p] = map[uint64]bool{}
		}
		for at := range set {
			shows[p][at] = true
		}
		if err := r.Show(p, false, false, &b); err != nil {
			t.Fatal(err)
		}
	}
}
