package volumes

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/origin/trust"
)

// TestTooFewHolders: a volume whose flushes wait for holders that are not there says so, and
// is among those that want a look.
func TestTooFewHolders(t *testing.T) {
	w := newWorld(t)
	w.cfg.Registry = newStore()
	var now atomic.Int64
	w.cfg.Holders = &holders.Farm{
		Self: w.cfg.Self, Live: func() []trust.PublicKey { return nil }, Fills: make(chan struct{}, holders.FillsMax), Log: w.cfg.Log,
		Now: func() time.Time { return time.Unix(now.Load(), 0) },
	}
	w.put(t, "web", Spec{Size: testSize, Durability: "farm:2"})
	if view, err := w.Get("web"); err != nil || view.Short || len(w.Failing()) > 0 {
		t.Fatalf("%+v, %v", view, err)
	}
	vol := w.device("web").vol
	if err := vol.WriteAt(t.Context(), make([]byte, 512), 0, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	flushed := make(chan error, 1)
	go func() { flushed <- vol.Flush(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		now.Add(1)
		view, err := w.Get("web")
		if err != nil {
			t.Fatal(err)
		}
		if view.Short {
			if !strings.Contains(view.Detail, "0 members") || !slices.Equal(w.Failing(), []string{"web"}) {
				t.Errorf("%+v; %v want a look", view, w.Failing())
			}
			break
		}
		<-tick.C
	}
	cancel()
	if err := <-flushed; err == nil {
		t.Error("the flush was acknowledged")
	}
}
