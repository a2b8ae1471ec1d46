package holders

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/soak"
)

// world is a farm with one volume: members with a store each on storage that forgets, a
// network between them that cuts and loses, an origin that not all reach, and writers of
// which all but the last have been taken over and don't know it.
type world struct {
	t       *testing.T
	random  *rand.Rand
	members []*modelMember
	alone   bool
	k       int

	mu      sync.Mutex // guards what follows
	cut     map[[2]int]bool
	away    map[int]bool // from the origin
	lossy   bool         // requests, replies and commits get lost
	record  catalog.Volume
	version int
	bucket  []uint64            // what the record has up to its base
	began   map[uint64][]uint64 // all that an epoch began with
	lonely  map[uint64]bool     // incarnations that ended degraded
	ended   map[uint64]time.Time
	acked   []uint64 // the longest that was acknowledged
	failed  string
	flushes int
	slow    func(to int, m wire.Message) // before a holder answers, if it does anything
}

type modelMember struct {
	exchange.Peer
	*disk
}

// modelWriter is one start of a process that wrote the volume.
type modelWriter struct {
	at     int
	line   *line
	before []uint64 // what lies before its line
	g      *Guard
	body   catalog.Volume // as it knows the record; guarded by the world's mu
}

func (w *world) fail(format string, args ...any) {
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
	}
}

func (w *world) keys(but int) (out []trust.PublicKey) {
	for i, m := range w.members {
		if i != but {
			out = append(out, m.Identity.Key)
		}
	}
	return out
}

// modelLane is a member's way to the others.
type modelLane struct {
	w  *world
	at int
}

func (l modelLane) Ask(_ context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	i := slices.IndexFunc(l.w.members, func(m *modelMember) bool { return m.ID == to })
	l.w.mu.Lock()
	cut, lost, unheard := l.w.cut[[2]int{l.at, i}], l.w.lossy && l.w.random.IntN(40) == 0, l.w.lossy && l.w.random.IntN(40) == 0
	member := l.w.members[i]
	store := member.Store
	l.w.mu.Unlock()
	if cut || lost {
		return nil, fmt.Errorf("%w: cut off", content.ErrUnavailable)
	}
	if e, ok := m.(wire.Extend); ok {
		e.Bytes = bytes.Clone(e.Bytes)
		m = e
	}
	finish := store.Take(l.w.members[l.at].Peer, m)
	return func() (*wire.Held, []byte, error) {
		held, b, err := finish(context.Background())
		if l.w.slow != nil {
			l.w.slow(i, m)
		}
		if err == nil && unheard {
			return nil, nil, fmt.Errorf("%w: the reply is lost", content.ErrUnavailable)
		}
		return held, b, err
	}, nil
}

// revise is a conditional write of the record by a member.
func (w *world) revise(at int, mine func(catalog.Volume) error, change func(*catalog.Volume) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away[at] || w.lossy && w.random.IntN(8) == 0 {
		return fmt.Errorf("%w: the origin", content.ErrUnavailable)
	}
	if err := mine(w.record); err != nil {
		return err
	}
	next := w.record
	if err := change(&next); err != nil {
		return err
	}
	w.record = next
	w.version++
	if w.lossy && w.random.IntN(8) == 0 {
		return fmt.Errorf("%w: the origin's reply is lost", content.ErrUnavailable)
	}
	return nil
}

func (w *world) said() catalog.Volume {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record
}

func (m *modelWriter) owns(v catalog.Volume) error {
	if v.Incarnation != m.body.Incarnation {
		return fmt.Errorf("%w: epoch %d has it", content.ErrFenced, v.Epoch)
	}
	return nil
}

// change is revise for a writer, which knows then what the record says.
func (w *world) change(m *modelWriter, change func(*catalog.Volume) error) error {
	err := w.revise(m.at, m.owns, change)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && m.owns(w.record) == nil {
		m.body = w.record
	}
	return err
}

func (w *world) known(m *modelWriter) catalog.Volume {
	w.mu.Lock()
	defer w.mu.Unlock()
	return m.body
}

// start starts a writer by the record, on a journal that lies behind the record's base.
func (w *world) start(at int, l *line) *modelWriter {
	w.mu.Lock()
	m := &modelWriter{at: at, line: l, before: slices.Clone(w.bucket), body: w.record}
	w.mu.Unlock()
	farm := &Farm{
		Lane: modelLane{w, at}, Self: w.members[at].Identity.Key, Live: func() []trust.PublicKey { return w.keys(at) },
		Fills: make(chan struct{}, FillsMax), Log: slog.New(slog.DiscardHandler),
	}
	m.g = farm.Guard(Owner{
		Name: func() string { return "web1" }, Record: func() (catalog.Volume, bool) { return w.known(m), true },
		Revise: func(_ context.Context, change func(*catalog.Volume) error) error { return w.change(m, change) },
		Outbid: func(_ context.Context, epoch uint64) (uint64, error) {
			err := w.change(m, func(v *catalog.Volume) error { v.Epoch = max(v.Epoch, epoch) + 1; return nil })
			return w.known(m).Epoch, err
		},
		Joined: func() error { return nil },
		Owned: func(context.Context) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.away[at] {
				return content.ErrUnavailable
			}
			return m.owns(w.record)
		},
	})
	m.g.Begin(l)
	return m
}

// flush flushes, and holds that what is acknowledged was not lost before or after.
func (w *world) flush(m *modelWriter) {
	upTo := m.line.End()
	said := slices.Concat(m.before, m.line.all())[:upTo.Seq]
	err := m.g.Persist(context.Background(), upTo)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		return
	}
	w.flushes++
	if m.owns(w.record) == nil {
		if len(said) > len(w.acked) {
			w.acked = said
		}
		return
	}
	for e := m.body.Epoch + 1; e <= w.record.Epoch; e++ {
		if began, ok := w.began[e]; ok {
			lonely := w.lonely[m.body.Incarnation] && time.Since(w.ended[m.body.Incarnation]) < 20*time.Second
			if !lonely && (len(began) < len(said) || !slices.Equal(began[:len(said)], said)) {
				w.fail("epoch %d acknowledged entry %d, and epoch %d began with %d entries", m.body.Epoch, len(said), e, len(began))
			}
			return
		}
	}
}

// mortalLane is that of a process that dies after so many requests.
type mortalLane struct {
	Lane
	left *atomic.Int64
}

func (l mortalLane) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	if l.left.Add(-1) < 0 {
		return nil, fmt.Errorf("%w: this process is dead", content.ErrClosed)
	}
	return l.Lane.Ask(ctx, to, m)
}

// takeover has a member inherit the volume, and commit that after a while; nil if it could
// not. Who dies does so after some requests, and before it commits.
func (w *world) takeover(t *rapid.T, at int, dir string, dies int64, after time.Duration) *modelWriter {
	w.mu.Lock()
	r, version, away, incarnation := w.record, w.version, w.away[at], w.random.Uint64()
	before := slices.Clone(w.bucket)
	w.mu.Unlock()
	if away {
		return nil
	}
	left := new(atomic.Int64)
	left.Store(cmp.Or(dies, int64(math.MaxInt64)))
	farm := &Farm{
		Self: w.members[at].Identity.Key, Log: slog.New(slog.DiscardHandler),
		Lane: mortalLane{Near{modelLane{w, at}, w.members[at].Store, w.members[at].Peer}, left}, Live: func() []trust.PublicKey { return w.keys(at) },
	}
	in, err := farm.Inherit(context.Background(), "web1", r, incarnation, filepath.Join(dir, "in"))
	if in.Epoch == 0 {
		in.Epoch = r.Epoch + 1
	}
	if err != nil || dies > 0 {
		return nil
	}
	wait(context.Background(), after)
	var segments [][]byte
	for _, s := range in.Segments {
		b, err := os.ReadFile(s.Path)
		if err != nil {
			t.Fatal(err)
		}
		segments = append(segments, b)
	}
	l, err := lineOf(theVolume, r.Base, segments)
	if err != nil {
		t.Fatalf("inherited: %v", err)
	}
	began := slices.Concat(before, l.all())
	mine := func(v catalog.Volume) error {
		if w.version != version {
			return content.ErrConflict
		}
		return nil
	}
	commit := func(v *catalog.Volume) error {
		v.Epoch, v.Incarnation, v.Holders, v.DegradedSince = in.Epoch, incarnation, in.Holders, time.Time{}
		w.began[in.Epoch], w.lonely[r.Incarnation], w.ended[r.Incarnation] = began, !in.DegradedSince.IsZero(), time.Now()
		if lost := len(w.acked) > len(began) || !slices.Equal(began[:len(w.acked)], w.acked); lost && in.DegradedSince.IsZero() {
			w.fail("epoch %d inherited %d entries of %d that were acknowledged", in.Epoch, len(began), len(w.acked))
		}
		w.acked = w.acked[:min(len(w.acked), len(began))]
		return nil
	}
	err = w.revise(at, mine, commit)
	w.mu.Lock()
	won := w.record.Epoch == in.Epoch && w.record.Incarnation == incarnation // as who reads it finds
	w.mu.Unlock()
	if err != nil && !won {
		return nil
	}
	return w.start(at, l)
}

// fold moves what a writer has sealed to the bucket.
func (w *world) fold(m *modelWriter) {
	m.line.roll(w.known(m).Epoch)
	end := m.line.segs[len(m.line.segs)-1].after
	err := w.change(m, func(v *catalog.Volume) error {
		all := slices.Concat(m.before, m.line.all())
		v.Base, w.bucket = end, all[:end.Seq]
		return nil
	})
	w.mu.Lock()
	done := m.owns(w.record) == nil && w.record.Base == end
	bucket := slices.Clone(w.bucket)
	w.mu.Unlock()
	if err == nil && done {
		m.before = bucket
		m.line.rebase(end)
	}
}

// TestNoAcknowledgedFlushIsLost drives a volume of k holders through crashes of holders by
// kill -9 and loss of power, partitions, lost requests, replies and commits, folds,
// takeovers from writers that go on, and holds after each step that what was acknowledged
// is where the next one takes it from, and that nobody acknowledges behind it.
func TestNoAcknowledgedFlushIsLost(t *testing.T) {
	before := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", strconv.Itoa(soak.Of(40, 200))); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("rapid.checks", before)
	flushes, takeovers := 0, 0
	for range soak.Of(1, 5) { // what has no deadline, as a bubble, ends after a day of its own clock
		synctest.Test(t, func(t *testing.T) {
			rapid.Check(struct{ rapid.TB }{t}, func(r *rapid.T) {
				f, o := simulate(t, r)
				flushes, takeovers = flushes+f, takeovers+o
			})
		})
	}
	if flushes < 10 || takeovers < 5 {
		t.Errorf("only %d flushes were acknowledged, and %d takeovers succeeded", flushes, takeovers)
	}
}

func simulate(t *testing.T, r *rapid.T) (flushes, takeovers int) {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 1)), k: rapid.IntRange(1, 2).Draw(r, "k"), alone: rapid.Bool().Draw(r, "alone"),
		cut: map[[2]int]bool{}, away: map[int]bool{}, began: map[uint64][]uint64{}, lonely: map[uint64]bool{}, ended: map[uint64]time.Time{},
	}
	w.record = catalog.Volume{ID: theVolume, Epoch: 1, Incarnation: 7, Policy: fmt.Sprintf("farm:%d", w.k)}
	if w.alone {
		w.record.Degrade = catalog.PolicyLocal
	}
	for range 4 {
		w.members = append(w.members, &modelMember{someone("north"), newDisk(t)})
	}
	writers := []*modelWriter{w.start(0, newLine(theVolume))}
	var work sync.WaitGroup
	defer func() {
		for _, m := range writers {
			m.g.Close()
		}
		work.Wait()
		for _, m := range w.members {
			_ = m.Close()
		}
	}()
	says := uint64(0)
	member := func(r *rapid.T) int { return rapid.IntRange(0, len(w.members)-1).Draw(r, "member") }
	writer := func(r *rapid.T) *modelWriter {
		return writers[rapid.IntRange(max(0, len(writers)-2), len(writers)-1).Draw(r, "writer")]
	}
	pass := func(d time.Duration) { wait(context.Background(), d) }
	heal := func() {
		w.mu.Lock()
		clear(w.cut)
		clear(w.away)
		w.lossy = false
		w.mu.Unlock()
	}
	pass(10 * time.Second) // the first holders are filled
	r.Repeat(map[string]func(*rapid.T){
		"write and flush": func(r *rapid.T) {
			m := writer(r)
			for range rapid.IntRange(1, 20).Draw(r, "entries") {
				says++
				m.line.write(w.known(m).Epoch, says)
			}
			work.Go(func() { w.flush(m) })
			pass(time.Duration(rapid.IntRange(0, 3000).Draw(r, "ms")) * time.Millisecond)
		},
		"partition": func(r *rapid.T) {
			w.mu.Lock()
			defer w.mu.Unlock()
			a, b := member(r), member(r)
			w.cut[[2]int{a, b}], w.cut[[2]int{b, a}] = true, true
		},
		"leave the origin": func(r *rapid.T) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.away[member(r)] = true
		},
		"lose":  func(*rapid.T) { w.mu.Lock(); defer w.mu.Unlock(); w.lossy = true },
		"heal":  func(*rapid.T) { heal(); pass(5 * time.Second) },
		"pass":  func(*rapid.T) { pass(40 * time.Second) },
		"fold":  func(r *rapid.T) { w.fold(writer(r)) },
		"sweep": func(r *rapid.T) { w.sweep(member(r)) },
		"crash": func(r *rapid.T) {
			m, power := w.members[member(r)], rapid.Bool().Draw(r, "power")
			w.mu.Lock()
			defer w.mu.Unlock()
			if power {
				m.cutPower(w.random)
			} else {
				m.kill()
			}
		},
		"lose a disk": func(r *rapid.T) {
			m := w.members[member(r)]
			w.mu.Lock()
			defer w.mu.Unlock()
			m.wipe()
		},
		"take over": func(r *rapid.T) {
			after := time.Duration(rapid.SampledFrom([]int{0, 0, 3, 20}).Draw(r, "s")) * time.Second
			if m := w.takeover(r, member(r), t.TempDir(), 0, after); m != nil {
				writers = append(writers, m)
				takeovers++
			}
		},
		"take over, and die": func(r *rapid.T) {
			w.takeover(r, member(r), t.TempDir(), rapid.Int64Range(1, 20).Draw(r, "requests"), 0)
		},
		"": func(r *rapid.T) {
			for _, m := range writers[:len(writers)-1] {
				if m.owns(w.said()) != nil && m.g.Vouched(context.Background()) {
					r.Errorf("its holders vouch for the writer at %d, and another has it", m.at)
				}
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.failed != "" {
				r.Fatal(w.failed)
			}
		},
	})
	heal() // and once all is well, it goes on
	last := writers[len(writers)-1]
	pass(3 * time.Minute)
	if requests := rapid.Int64Range(0, 20).Draw(r, "requests"); requests > 0 {
		w.takeover(r, (last.at+1)%len(w.members), t.TempDir(), requests, 0)
	}
	says++
	last.line.write(w.known(last).Epoch, says)
	err := last.g.Persist(context.Background(), last.line.End())
	w.mu.Lock()
	owned := last.owns(w.record) == nil
	w.mu.Unlock()
	if err != nil && owned {
		r.Errorf("when all is well: %v", err)
	}
	work.Wait()
	return w.flushes, takeovers
}

// sweep has a holder look at the record, as it does of what nobody has spoken of for long.
func (w *world) sweep(at int) {
	w.mu.Lock()
	r, version, away, store := w.record, w.version, w.away[at], w.members[at].Store
	w.mu.Unlock()
	store.Sweep(context.Background(), time.Now().Add(2*sweepAfter), func(context.Context, string) (Said, error) {
		if away {
			return Said{}, content.ErrUnavailable
		}
		return Said{Version: uint64(version), ID: r.ID, Epoch: r.Epoch, Base: r.Base, Holder: slices.Contains(r.Holders, w.members[at].Identity.Key)}, nil
	})
}
