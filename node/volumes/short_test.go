package volumes

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// TestDegradeIsTakenBack: what lets flushes go on alone is asked for, and taken back, while
// the volume is served.
func TestDegradeIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.cfg.Registry = newStore()
	for _, x := range [][2]string{{"local", "local"}, {"", "local"}, {"none", ""}, {"", ""}, {"local", "local"}} {
		if view := w.put(t, "web", Spec{Size: testSize, Durability: "farm:1", Degrade: x[0]}); view.Degrade != x[1] {
			t.Errorf("asked for %q, it is %q", x[0], view.Degrade)
		}
	}
}

// nobody is a lane on which no one answers.
type nobody struct{}

func (nobody) Ask(context.Context, peer.ID, wire.Message) (func() (*wire.Held, []byte, error), error) {
	return nil, content.ErrUnavailable
}

// TestTooFewHolders: a volume says at once that fewer members are there than its policy asks
// for, and one whose flushes wait for holders that don't answer says so after a while; both
// are among those that want a look.
func TestTooFewHolders(t *testing.T) {
	w := newWorld(t)
	w.cfg.Registry = newStore()
	var now atomic.Int64
	var came atomic.Bool
	w.cfg.Holders = &holders.Farm{
		Self: w.cfg.Self, Lane: nobody{}, Fills: make(chan struct{}, holders.FillsMax), Log: w.cfg.Log,
		Now: func() time.Time { return time.Unix(now.Load(), 0) },
		Live: func() []trust.PublicKey {
			if came.Load() {
				return []trust.PublicKey{{8}, {9}}
			}
			return []trust.PublicKey{{8}}
		},
	}
	if view := w.put(t, "web", Spec{Size: testSize, Durability: "farm:2"}); !view.Short || !strings.Contains(view.Detail, "too few for farm:2") || !slices.Equal(w.Failing(), []string{"web"}) {
		t.Fatalf("%+v", view)
	}
	came.Store(true)
	if view, err := w.Get("web"); err != nil || view.Short || len(w.Failing()) > 0 {
		t.Fatalf("once they are there: %+v, %v", view, err)
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
