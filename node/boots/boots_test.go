package boots

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

func newBoots(t *testing.T) *Boots {
	t.Helper()
	return New(Config{Dir: t.TempDir(), Codec: content.NewCodec(), Now: time.Now, Log: slog.New(slog.DiscardHandler)})
}

// TestDisksAreOpenedBeforeRun: whatever of a node runs first, what is opened is told of; and nothing outlives Run.
func TestDisksAreOpenedBeforeRun(t *testing.T) {
	b := newBoots(t)
	began, ended := make(chan struct{}), make(chan struct{})
	b.start(func(ctx context.Context) {
		close(began)
		<-ctx.Done()
		close(ended)
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	select {
	case <-began:
	case <-time.After(time.Minute):
		t.Error("what was opened before is forgotten")
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("it goes on behind Run")
	}
	b.start(func(context.Context) { t.Error("it begins behind Run") })
	b.running.Wait()
}

// TestUseIsOfTheListThatIs: what became of the list before it says nothing of a new one.
func TestUseIsOfTheListThatIs(t *testing.T) {
	b, root := newBoots(t), rootOf(1)
	for range judgedAfter {
		if err := b.book.note(root, boot{at: 1, made: 7, listed: 100, read: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if u := b.Use(root, 7); !u.Left || u.Listed != judgedAfter || u.Share != 0.01 || u.Boots != judgedAfter {
		t.Errorf("%+v", u)
	}
	if u := b.Use(root, 8); u.Left || u.Listed != 0 || u.Share != 0 || u.Boots != judgedAfter {
		t.Errorf("of a new list: %+v", u)
	}
}

// TestWhatIsJudged: a boot tells of the list that the image's record has, and nothing of it where its volume had one of its own.
func TestWhatIsJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, root := newBoots(t), rootOf(1)
		own, hot := &catalog.Boot{Made: 7, Stages: []catalog.BootStage{{Chunks: []uint64{1, 2, 900, 901}}}}, &catalog.Boot{Made: 8, Stages: []catalog.BootStage{{Chunks: []uint64{1}}}}
		b.cfg.Image = func(content.CID) (*catalog.Boot, bool) { return own, true }
		for n, r := range []*recording{{list: own}, {list: hot, disk: Disk{Hot: hot}}, {list: own}, {}} {
			r.root, r.trace = root, touch.New(content.MapFanout, func() {})
			for i := range uint64(touch.Least) {
				r.trace.Touch(i)
			}
			b.watch(t.Context(), r)
			if u, want := b.Use(root, 7), min(n/2+1, 2); u.Boots != n+1 || u.Listed != want || u.Share != 0.5 {
				t.Errorf("after %d boots: %+v", n+1, u)
			}
		}
	})
}
