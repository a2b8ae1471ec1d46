package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/volumes/gate"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/wire"
)

// confirm has a node look at the records of its volumes.
func (w *world) confirm(t *testing.T) {
	w.now = w.now.Add(right.SaidFor)
	w.lookAtOwned(t.Context(), right.NewLooks(0, w.now))
}

// TestTakerThatDied: holders have promised themselves to who was about to take a volume
// over, and is gone. Who has it by the record goes on with its flushes, no disk is
// fenced, and who takes the volume over after that has all of it.
func TestTakerThatDied(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	for i := range uint64(2) {
		body, err := p.store.body("disk")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.b.cfg.Holders.Inherit(t.Context(), "disk", body, 77+i, filepath.Join(t.TempDir(), "inherited")); err != nil {
			t.Fatal(err)
		}
		p.a.flushed(t, "disk", want, 2+i)
		if after, err := p.store.body("disk"); err != nil || after.Epoch <= body.Epoch+1 || after.Incarnation != body.Incarnation {
			t.Errorf("the record says epoch %d of %x, and holders were promised to %d; %v", after.Epoch, after.Incarnation, body.Epoch+1, err)
		}
	}
	old := p.a.device("disk")
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
	if err := old.front.WriteAt(t.Context(), make([]byte, 512), 0, true); err == nil {
		t.Error("a flush is acknowledged after a takeover")
	}
}

// TestHoldersConfirmedLater: a volume that others hold, started while the origin was away,
// is held under the epoch that it has once the origin is back.
func TestHoldersConfirmedLater(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	p.a = p.again(t, p.a, 0)
	p.store.down = true
	p.a.openAll(t.Context())
	p.a.fill(t, "disk", want, 5, 2)
	p.store.down = false
	p.a.confirm(t)
	p.a.flushed(t, "disk", want, 3)
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
}

// gated lets nothing pass until it is open.
type gated struct {
	holders.Lane
	open chan struct{}
}

func (l gated) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	<-l.open
	return l.Lane.Ask(ctx, to, m)
}

// stoppedPair is one of which the first node has stopped, and what its disk had acknowledged; if
// rolled, the disk is as it was before the last flush.
func stoppedPair(t *testing.T, rolled bool) (p *holdingPair, want []byte) {
	p, want = newHoldingPair(t), make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	e, _ := p.a.index.Get("disk")
	path, old := p.a.index.Path(e), filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	p.a.flushed(t, "disk", want, 2)
	p.a.stop(t)
	if rolled {
		if err := errors.Join(os.RemoveAll(path), os.CopyFS(path, os.DirFS(old))); err != nil {
			t.Fatal(err)
		}
	}
	return p, want
}

// TestRolledBackDiskIsNotHeld: a disk that is an older copy, served while the origin is
// away and written to until it has as many entries as its holders have, brings them none
// of those, and is served no more once the origin is back, and says why. A takeover goes on
// with what the holders have, here too.
func TestRolledBackDiskIsNotHeld(t *testing.T) {
	p, want := stoppedPair(t, true)
	p.a = p.again(t, p.a, 0)
	lane := gated{p.a.cfg.Holders.Lane, make(chan struct{})}
	p.a.cfg.Holders.Lane = lane
	p.store.down = true
	p.a.openAll(t.Context())
	p.a.fill(t, "disk", make([]byte, testSize), 60, 9) // more than it lacks
	close(lane.open)
	brief, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := p.a.device("disk").front.Flush(brief); err == nil {
		t.Error("a flush is acknowledged before anybody knows whose the volume is")
	}
	p.store.down = false
	p.a.confirm(t)
	if err := p.a.device("disk").front.Flush(t.Context()); !errors.Is(err, content.ErrFenced) {
		t.Errorf("a flush of a disk that was rolled back: %v", err)
	}
	for until := time.Now().Add(10 * time.Second); p.a.device("disk").vol != nil && time.Now().Before(until); { // nor is it read for long
		p.a.giveUpLost(t.Context())
		runtime.Gosched()
	}
	if v, err := p.a.Get("disk"); err != nil || v.State != terms.StateFailed || !strings.Contains(v.Detail, "rolled back") {
		t.Errorf("%+v, %v", v, err)
	}
	p.a.put(t, "disk", Spec{Takeover: true})
	p.a.is(t, "disk", want)
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
}

// TestRolledBackDiskStartsOnceMore: so it is where its node starts again, before it has asked
// anybody, and the disk has as much as the holders by then; and what a disk that was not rolled
// back has written is known for its own, over starts.
func TestRolledBackDiskStartsOnceMore(t *testing.T) {
	for _, rolled := range []bool{false, true} {
		p, want := stoppedPair(t, rolled)
		written := want
		if rolled {
			written = make([]byte, testSize)
		}
		p.store.down = true
		for i := range uint64(2) {
			p.a = p.again(t, p.a, 0)
			p.a.openAll(t.Context())
			p.a.fill(t, "disk", written, 30, 9+i)
			p.a.stop(t)
		}
		p.store.down = false
		p.a = p.again(t, p.a, 0)
		p.a.openAll(t.Context())
		if err := p.a.device("disk").front.Flush(t.Context()); rolled != errors.Is(err, content.ErrFenced) || !rolled && err != nil {
			t.Errorf("a flush, rolled back %t: %v", rolled, err)
		}
		p.b.put(t, "disk", Spec{Takeover: true})
		p.b.is(t, "disk", want)
	}
}

// tearing fails the first requests that bring something, once that was done.
type tearing struct {
	holders.Lane
	brought *atomic.Int64
}

func (l tearing) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	finish, err := l.Lane.Ask(ctx, to, m)
	if _, brings := m.(wire.Extend); !brings || err != nil || l.brought.Add(1) > 4 {
		return finish, err
	}
	return func() (*wire.Held, []byte, error) {
		_, _, err := finish()
		return nil, nil, errors.Join(err, content.ErrUnavailable)
	}, nil
}

// TestHoldersAreLostWhileTheyCatchUp: what was written before anybody knew whose the volume is
// comes to holders that are lost meanwhile, and is not taken for another disk's.
func TestHoldersAreLostWhileTheyCatchUp(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	p.a.stop(t)
	p.a = p.again(t, p.a, 0)
	p.a.cfg.Holders.Lane = tearing{p.a.cfg.Holders.Lane, new(atomic.Int64)}
	p.store.down = true
	p.a.openAll(t.Context())
	p.a.fill(t, "disk", want, 60, 2)
	p.store.down = false
	p.a.confirm(t)
	for n := range uint64(4) {
		p.a.flushed(t, "disk", want, 3+n)
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	p.b.is(t, "disk", want)
}

// TestHoldersOfBefore: who has taken a volume over, and takes another epoch later, names
// those who hold it by then, not those who did at first.
func TestHoldersOfBefore(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:1"})
	p.a.flushed(t, "disk", want, 1)
	p.b.put(t, "disk", Spec{Takeover: true})
	a := p.b.device("disk")
	var named []byte
	if err := a.revise(t.Context(), func(body *catalog.Volume) error {
		i := slices.IndexFunc(p.all, func(k trust.PublicKey) bool { return k != p.b.cfg.Self && !slices.Contains(body.Holders, k) })
		body.Holders[0] = p.all[i]
		named = p.all[i][:]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	p.store.down = true
	if err := a.happen(t.Context(), right.StoodStill{}); err != nil {
		t.Fatal(err)
	}
	p.store.down = false
	p.b.confirm(t)
	if body, err := p.store.body("disk"); err != nil || !slices.Equal(body.Holders[0][:], named) {
		t.Errorf("it names %x, want %x; %v", body.Holders, named, err)
	}
}

// TestHoldersKnowTheName: what holders have of a volume that was made while the origin was
// away, and whose name was taken meanwhile, is under the name that it has got.
func TestHoldersKnowTheName(t *testing.T) {
	p := newHoldingPair(t)
	want := make([]byte, testSize)
	p.store.down = true
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.fill(t, "disk", want, 5, 1)
	p.store.down = false
	p.b.put(t, "disk", Spec{Size: testSize})
	for _, name := range []string{"disk", "disk.node"} {
		if err := p.a.commitLater(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.a.device("disk.node").happen(t.Context(), right.StoodStill{}); err != nil { // as the pulse finds its gate shut
		t.Fatal(err)
	}
	p.a.flushed(t, "disk.node", want, 2)
	asked := 0
	for _, s := range p.of {
		s.Sweep(t.Context(), time.Now().Add(24*time.Hour), func(_ context.Context, name string) (holders.Said, error) {
			if asked++; name != "disk.node" {
				t.Errorf("a holder asks for the record of %q", name)
			}
			return holders.Said{}, content.ErrUnavailable
		})
	}
	if asked < 2 {
		t.Errorf("%d holders have something", asked)
	}
}

// TestHoldersVouch: a volume goes on whose node stood still while the origin can't be asked,
// when its holders say that nobody has come to them; and waits when one has, or one of them
// does not answer.
func TestHoldersVouch(t *testing.T) {
	p := newHoldingPair(t)
	home := &hanging{store: p.store, writes: make(chan struct{}, 16)}
	p.a.cfg.Registry = home
	var slept atomic.Int64
	p.a.pulse = gate.NewPulse(func() time.Duration { return time.Duration(slept.Load()) })
	cut := &parting{Lane: p.a.cfg.Holders.Lane}
	p.a.cfg.Holders.Lane = cut
	want := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize, Durability: "farm:2"})
	p.a.flushed(t, "disk", want, 1)
	a := p.a.device("disk")
	ctx, cancel := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() { _ = p.a.watchPulse(ctx) })
	home.hangs.Store(true)
	write := func(within time.Duration) error {
		slept.Add(int64(time.Minute))
		brief, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		return a.front.WriteAt(brief, want[:512], 0, true)
	}
	if err := write(time.Minute); err != nil {
		t.Fatal(err)
	}
	body, err := p.store.body("disk")
	if err != nil {
		t.Fatal(err)
	}
	cut.from.Store(new(identity.PeerID(body.Holders[0])))
	if err := write(time.Second); err == nil {
		t.Error("a holder says nothing, and a write goes on")
	}
	cut.from.Store(nil)
	look, end := context.WithTimeout(ctx, startTimeout+time.Minute)
	defer end()
	if err := a.happen(look, right.Due{}); err != nil { // the record can't be read still
		t.Error(err)
	}
	if err := a.front.WriteAt(ctx, want[:512], 0, true); err != nil {
		t.Errorf("once it answers: %v", err)
	}
	p.b.put(t, "disk", Spec{Takeover: true})
	if err := write(time.Second); err == nil {
		t.Error("another has it, and a write goes on")
	}
	p.b.is(t, "disk", want)
	home.hangs.Store(false)
}

// parting is a lane that does not reach one member.
type parting struct {
	holders.Lane
	from atomic.Pointer[peer.ID]
}

func (l *parting) Ask(ctx context.Context, to peer.ID, m wire.Message) (func() (*wire.Held, []byte, error), error) {
	if off := l.from.Load(); off != nil && *off == to {
		return nil, content.ErrUnavailable
	}
	return l.Lane.Ask(ctx, to, m)
}
