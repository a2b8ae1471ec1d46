package volumes

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/volumes/gate"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// stuckAt is a registry that answers nothing about one name.
type stuckAt struct {
	*store
	name string
}

func (h stuckAt) Volume(ctx context.Context, name string) (catalog.Record, error) {
	if name == h.name {
		<-ctx.Done()
		return catalog.Record{}, content.ErrUnavailable
	}
	return h.store.Volume(ctx, name)
}

// TestOneStuckCommitKeepsNoneWaiting: of volumes that were made while the origin was away one
// gets no answer, and another is being changed all the time; a third is registered at once.
func TestOneStuckCommitKeepsNoneWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.stop(t)
		home := newStore()
		home.down = true
		w.cfg.Registry = home
		for _, name := range []string{"a", "b", "c"} {
			w.put(t, name, Spec{Size: testSize})
		}
		home.down = false
		w.cfg.Registry = stuckAt{home, "a"}
		end := w.turn("b")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = w.keepMending(ctx)
		}()
		<-time.After(2 * tryInterval)
		synctest.Wait()
		if e, _ := w.index.Get("c"); !e.Committed {
			t.Error("it is not registered")
		}
		end()
		<-time.After(2 * recordTimeout)
		synctest.Wait()
		if e, _ := w.index.Get("b"); !e.Committed {
			t.Error("nor is the one that was being changed")
		}
		if state := w.state(t, "a"); state != terms.StateUncommitted {
			t.Errorf("the other is %s", state)
		}
		cancel()
		<-done
	})
}

// deafTo is a registry that holds who asks about one name, whatever they do, until it is told to let them go.
type deafTo struct {
	*store
	name    string
	release chan struct{}
}

func (h deafTo) Volume(ctx context.Context, name string) (catalog.Record, error) {
	if name == h.name {
		<-h.release
	}
	return h.store.Volume(ctx, name)
}

// TestOneStuckStartKeepsNoneWaiting: while one volume is being opened, for as long as that takes, another is acknowledged to
// be this node's again after the process has stood still.
func TestOneStuckStartKeepsNoneWaiting(t *testing.T) {
	w := newWorld(t)
	home := newStore()
	w.cfg.Registry = home
	for _, name := range []string{"a", "b"} {
		w.put(t, name, Spec{Size: testSize})
	}
	w = w.again(t)
	var clock atomic.Int64
	w.pulse = gate.NewPulse(func() time.Duration { return time.Duration(clock.Load()) })
	deaf := deafTo{home, "a", make(chan struct{})}
	w.cfg.Registry = deaf
	w.run(t)
	var once sync.Once
	release := func() { once.Do(func() { close(deaf.release) }) }
	t.Cleanup(release)
	for w.device("b") == nil || w.device("b").vol == nil {
		runtime.Gosched()
	}
	clock.Add(int64(time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.device("b").front.Flush(ctx); err != nil {
		t.Errorf("a flush behind a standstill: %v", err)
	}
	if w.Opened() {
		t.Error("the other is not being opened")
	}
	release()
}

// TestMadeAfterAStandstill: a volume that nobody else can have is written at once, though this
// process stood still before it was made.
func TestMadeAfterAStandstill(t *testing.T) {
	w := newWorld(t)
	var clock time.Duration
	w.pulse = gate.NewPulse(func() time.Duration { return clock })
	clock = time.Minute
	w.pulse.Look()
	w.create(t, "web")
	if gaps := w.pulse.Gaps(); gaps != 1 || !w.device("web").gate.IsOpen() {
		t.Errorf("after %d standstills what is written to it waits", gaps)
	}
}
