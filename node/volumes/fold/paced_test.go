package fold

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// TestFoldGivesWay: a fold that is under way ends where the bucket is away and the journal
// has grown by much since it began, and not before.
func TestFoldGivesWay(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	vol := w.attach(t, dir, w.record(), 1)
	defer vol.Close()
	if err := vol.WriteAt(t.Context(), bytes.Repeat([]byte{1}, block), 0, true); err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	under, ended := make(chan context.Context), make(chan error, 1)
	cfg := w.config()
	cfg.Bucket = func() (bucket.Bucket, error) {
		if away.Load() {
			return nil, content.ErrUnavailable
		}
		return w.bucket()
	}
	cfg.Revise = func(ctx context.Context, _ func(*catalog.Volume) error) error {
		under <- ctx
		<-ctx.Done()
		return context.Cause(ctx)
	}
	p := NewPaced(vol, cfg)
	go func() { ended <- p.Run(t.Context(), Safe) }()
	ctx := <-under
	away.Store(true)
	p.GiveWay() // nothing was written since
	p.mu.Lock()
	p.began -= AfterBytes
	p.mu.Unlock()
	away.Store(false)
	p.GiveWay() // it answers
	if err := ctx.Err(); err != nil {
		t.Errorf("it was ended: %v", err)
	}
	away.Store(true)
	p.GiveWay()
	if err := <-ended; !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("it ends with %v", err)
	}
	p.GiveWay() // none is under way
}

// TestALargeFoldAsksFirst: nothing of a journal is kept for a fold of much where the bucket
// does not answer.
func TestALargeFoldAsksFirst(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	w.body.Size = 2 * AfterBytes
	vol := w.attach(t, dir, w.record(), 1)
	defer vol.Close()
	data := bytes.Repeat([]byte{1}, 1<<20)
	for at := int64(0); at < w.body.Size; at += 1 << 20 {
		if err := vol.WriteAt(t.Context(), data, at, false); err != nil {
			t.Fatal(err)
		}
	}
	w.failing(func(mem.Call) mem.Fault { return mem.Fault{Err: content.ErrUnavailable} })
	sealed := 0
	cfg := w.config()
	cfg.At = func(Step) error { sealed++; return nil }
	p := NewPaced(vol, cfg)
	if err := p.Run(t.Context(), Safe); !errors.Is(err, content.ErrUnavailable) || sealed > 0 {
		t.Errorf("%v, and it came by %d steps", err, sealed)
	}
	w.failing(nil)
	if err := p.Run(t.Context(), Safe); err != nil || sealed == 0 {
		t.Errorf("once the bucket answers: %v, %d steps", err, sealed)
	}
}

// TestFoldRests: a fold rests longer than it works, but not for who waits for one, nor
// without end.
func TestFoldRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Paced{rest: time.Now().Add(restWithin)}
		rests := func(ctx context.Context) time.Duration {
			begun := time.Now()
			p.stand(ctx, time.Millisecond)
			return time.Since(begun)
		}
		if took := rests(t.Context()); took < 2*time.Millisecond {
			t.Errorf("it rests for %v", took)
		}
		p.asks.Add(1)
		if took := rests(t.Context()); took > 0 {
			t.Errorf("somebody waits, and it rests for %v", took)
		}
		p.asks.Add(-1)
		if took := rests(ended(t)); took > 0 {
			t.Errorf("it has ended, and rests for %v", took)
		}
		for at := time.Now(); rests(t.Context()) > 0; {
			if time.Since(at) > 2*restWithin {
				t.Fatal("it rests without end")
			}
		}
	})
}

func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestRunIsPromptTendRests: the chunks of a fold that nobody waits for are made with rests.
func TestRunIsPromptTendRests(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	vol := w.attach(t, dir, w.record(), 1)
	defer vol.Close()
	p := NewPaced(vol, w.config())
	asks := int32(-1)
	inner := p.cfg.Rest
	p.cfg.Rest = func(ctx context.Context, took time.Duration) { asks = p.asks.Load(); inner(ctx, took) }
	for i, fold := range []func() error{
		func() error { return p.Tend(t.Context()) },
		func() error { return p.Run(t.Context(), Chunks) },
	} {
		if err := vol.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i + 1)}, int(w.body.Size)), 0, true); err != nil {
			t.Fatal(err)
		}
		if err := fold(); err != nil {
			t.Fatal(err)
		}
		if asks != int32(i) {
			t.Errorf("in fold %d %d wait", i, asks)
		}
	}
}
