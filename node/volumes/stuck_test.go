package volumes

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

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
