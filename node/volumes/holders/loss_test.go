package holders

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
	"github.com/grangemesh/grange/simulations/soak"
)

// beginnings is a lane that counts the members that are asked to begin, at once and in all.
type beginnings struct {
	Lane
	fills chan struct{}

	mu               sync.Mutex
	now, most, begun int
	outside          bool // one began that had no place among the fills
}

func (l *beginnings) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	finish, err := l.Lane.Ask(ctx, to, m)
	if p, ok := m.(wire.Promise); !ok || !p.Begin || err != nil {
		return finish, err
	}
	l.mu.Lock()
	l.now, l.begun = l.now+1, l.begun+1
	l.most = max(l.most, l.now)
	l.outside = l.outside || len(l.fills) == 0
	l.mu.Unlock()
	return func() (*wire.Held, []byte, error) {
		defer func() { l.mu.Lock(); l.now--; l.mu.Unlock() }()
		return finish()
	}, nil
}

// guest writes to a volume and flushes it, now and then, and keeps how long that took.
type guest struct {
	v     *volume.Volume
	r     *record
	g     *Guard
	phase *atomic.Int32
	took  [3][]time.Duration // by phase
}

func (g *guest) run(ctx context.Context, at int, every time.Duration) error {
	pace := time.NewTicker(every)
	defer pace.Stop()
	p := make([]byte, 4096)
	for i := at; ctx.Err() == nil; i++ {
		begun, phase := time.Now(), g.phase.Load()
		if err := g.v.WriteAt(context.Background(), p, int64(i%256)*4096, true); err != nil {
			return err
		}
		g.took[phase] = append(g.took[phase], time.Since(begun))
		select {
		case <-pace.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// TestManyVolumesLoseOneHolder: the guests of many volumes write and flush while a member
// that holds for most of them ends. No flush fails, no more members are filled at once than
// there is room for, and each volume has all of its holders again, none of them the one.
func TestManyVolumesLoseOneHolder(t *testing.T) {
	all := newNodes(t, 5)
	writer, lost := all[0], all[1]
	lane := &beginnings{Lane: writer.farm.Lane, fills: writer.farm.Fills}
	var gone atomic.Bool
	live := writer.farm.Live
	writer.farm.Lane, writer.farm.Live = lane, func() []trust.PublicKey {
		return slices.DeleteFunc(live(), func(k trust.PublicKey) bool { return gone.Load() && k == lost.Identity.Key })
	}
	dir, phase := t.TempDir(), new(atomic.Int32)
	var guests []*guest
	for i := range soak.Of(20, 200) {
		g := &guest{phase: phase, r: &record{body: catalog.Volume{ID: content.VolumeID{1, byte(i >> 8), byte(i)}, Size: 1 << 20, Epoch: 1, Incarnation: 11, Policy: "farm:2"}}}
		folder := filepath.Join(dir, fmt.Sprint(i))
		if err := volume.Create(folder, g.r.body.ID); err != nil {
			t.Fatal(err)
		}
		g.v, g.g = writer.serve(t, folder, g.r)
		guests = append(guests, g)
	}
	names := func(k trust.PublicKey) (n int) {
		for _, g := range guests {
			if body := g.r.get(); len(body.Holders) != 2 {
				t.Errorf("volume %s has %d holders", body.ID, len(body.Holders))
			} else if slices.Contains(body.Holders, k) {
				n++
			}
		}
		return n
	}
	for _, g := range guests {
		if err := g.v.WriteAt(t.Context(), make([]byte, 64<<10), 0, true); err != nil { // it is filled
			t.Fatal(err)
		}
	}
	before := names(lost.Identity.Key)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for i, g := range guests {
		work.Go(func() {
			if err := g.run(ctx, i, time.Duration(len(guests))*5*time.Millisecond); err != nil {
				t.Errorf("a flush of volume %s: %v", g.r.get().ID, err)
			}
		})
	}
	wait(ctx, 3*time.Second)
	lane.mu.Lock()
	lane.most, lane.begun = 0, 0
	lane.mu.Unlock()
	phase.Store(1)
	gone.Store(true)
	lost.stop()
	left := func() bool {
		return slices.ContainsFunc(guests, func(g *guest) bool { return slices.Contains(g.r.get().Holders, lost.Identity.Key) })
	}
	for deadline := time.Now().Add(2 * time.Minute); left() && time.Now().Before(deadline); {
		wait(ctx, 50*time.Millisecond)
	}
	phase.Store(2)
	wait(ctx, time.Second)
	cancel()
	work.Wait()
	if n := names(lost.Identity.Key); n > 0 || before < len(guests)/4 {
		t.Errorf("%d volumes name who is gone, of %d that did", n, before)
	}
	if lane.most > FillsMax || lane.outside || lane.begun < before {
		t.Errorf("%d members were asked to begin, %d at once, of %d; outside of those: %t", lane.begun, lane.most, FillsMax, lane.outside)
	}
	for i, what := range []string{"before", "while a holder is replaced", "after"} {
		var took []time.Duration
		for _, g := range guests {
			took = append(took, g.took[i]...)
		}
		slices.Sort(took)
		if n := len(took); n > 0 {
			t.Logf("%-26s %6d flushes of %d volumes, p50 %8s, p99 %8s, longest %s", what, n, len(guests), took[n/2].Round(time.Microsecond), took[n*99/100].Round(time.Microsecond), took[n-1].Round(time.Millisecond))
		}
	}
	for _, g := range guests {
		g.g.Close()
		if err := g.v.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestALostCopyIsFilledInPlace: the one holder of a farm of two loses what it had. The next
// flush goes on without the bucket; the record names it all along, and who would take the
// volume over before it is whole is told that it has not what it should.
func TestALostCopyIsFilledInPlace(t *testing.T) {
	all := newNodes(t, 2)
	r := &record{body: catalog.Volume{ID: theVolume, Size: 8 << 20, Epoch: 1, Incarnation: 11, Policy: "farm:1"}}
	v, g := all[0].serve(t, created(t), r)
	if err := v.WriteAt(t.Context(), make([]byte, 64<<10), 0, true); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.never = func(body catalog.Volume) bool { return len(body.Holders) == 0 }
	r.mu.Unlock()
	h := all[1].store.volumes[theVolume]
	if err := h.sweep(h.note.claim, time.Now()); err != nil {
		t.Fatal(err)
	}
	heir := func() error {
		_, err := all[1].farm.Inherit(t.Context(), "web1", r.get(), 12, filepath.Join(t.TempDir(), "in"))
		return err
	}
	if err := heir(); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("before it is whole: %v", err)
	}
	if err := v.WriteAt(t.Context(), make([]byte, 64<<10), 1<<20, true); err != nil {
		t.Errorf("a flush: %v", err)
	}
	if body := r.get(); r.broken || len(body.Holders) != 1 {
		t.Errorf("the record named nobody: %t, and names %d", r.broken, len(body.Holders))
	}
	g.Close()
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

// TestAFlushWaitsForAFill: a flush waits for who comes in place of a lost holder as long as
// that gets on, however large the journal is, and fails when it does not.
func TestAFlushWaitsForAFill(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := &world{t: t, k: 1, cut: map[[2]int]bool{}, away: map[int]bool{}, began: map[uint64][]uint64{}}
			w.record = catalog.Volume{ID: theVolume, Epoch: 1, Incarnation: 7, Policy: "farm:1"}
			for range 3 {
				w.members = append(w.members, &modelMember{someone("north"), newDisk(t)})
			}
			l := newLine(theVolume)
			m := w.start(0, l)
			for i := range uint64(100) {
				l.write(1, i)
				l.roll(1)
			}
			if err := m.g.Persist(t.Context(), l.End()); err != nil {
				t.Fatal(err)
			}
			first := w.holder()
			w.mu.Lock()
			w.cut[[2]int{0, first}] = true
			took, extended := time.Now(), 0
			w.slow = func(to int, m wire.Message) {
				if _, ok := m.(wire.Extend); !ok {
					return
				}
				if extended++; stuck && extended > 50 {
					wait(t.Context(), 2*FlushWait)
				}
				wait(t.Context(), time.Second)
			}
			w.mu.Unlock()
			l.write(1, 100)
			err := m.g.Persist(t.Context(), l.End())
			switch took := time.Since(took); {
			case stuck && (!errors.Is(err, content.ErrUnavailable) || took > 3*time.Minute):
				t.Errorf("one that gets nowhere: after %s: %v", took, err)
			case !stuck && (err != nil || took < 90*time.Second || w.holder() == first):
				t.Errorf("after %s: %v", took, err)
			}
			m.g.Close()
			for _, m := range w.members {
				_ = m.Close()
			}
		})
	}
}

// holder is the member that the record names.
func (w *world) holder() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.IndexFunc(w.members, func(m *modelMember) bool { return m.Identity.Key == w.record.Holders[0] })
}
