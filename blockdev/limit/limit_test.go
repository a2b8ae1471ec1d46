package limit

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/blockdev"
)

// counted is a device that counts what is asked of it, and has cold places.
type counted struct {
	requests, bytes atomic.Int64
	cold            bool // no Try succeeds
}

func (c *counted) count(n int) error {
	c.requests.Add(1)
	c.bytes.Add(int64(n))
	return nil
}

func (c *counted) try(n int) bool { return !c.cold && c.count(n) == nil }

func (c *counted) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: 1 << 40, BlockSize: 512}
}
func (c *counted) ReadAt(_ context.Context, p []byte, _ int64) error          { return c.count(len(p)) }
func (c *counted) TryReadAt(p []byte, _ int64) bool                           { return c.try(len(p)) }
func (c *counted) TryReadTo(_ io.WriterAt, n int, _ int64) bool               { return c.try(n) }
func (c *counted) WriteAt(_ context.Context, p []byte, _ int64, _ bool) error { return c.count(len(p)) }
func (c *counted) TryWriteFrom(_ io.ReaderAt, n int, _ int64) bool            { return c.try(n) }
func (c *counted) TryWriteBatch(ws []blockdev.Write) int {
	for i, w := range ws {
		if !c.try(len(w.Data)) {
			return i
		}
	}
	return len(ws)
}
func (c *counted) Zero(context.Context, int64, int64, bool, bool) error { return c.count(0) }
func (c *counted) Flush(context.Context) error                          { return nil }
func (c *counted) Extents(context.Context, []blockdev.Extent, int64, int64, int) ([]blockdev.Extent, error) {
	return nil, nil
}

// ask is what a door does with a request.
func ask(ctx context.Context, d *Device, write bool, p []byte) error {
	switch {
	case write && d.TryWriteBatch([]blockdev.Write{{Data: p}}) == 1, !write && d.TryReadAt(p, 0):
		return nil
	case write:
		return d.WriteAt(ctx, p, 0, false)
	}
	return d.ReadAt(ctx, p, 0)
}

// TestLimitsHold has clients of any number and requests of any length ask without pause:
// in no time is more done than the limits and one burst allow, nor, when one of them is
// what they wait for, much less.
func TestLimitsHold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := Limits{IOPS: rapid.SampledFrom([]int64{0, 1, 50, 3000}).Draw(rt, "iops"), BytesPerSecond: rapid.SampledFrom([]int64{0, 1 << 20, 50 << 20}).Draw(rt, "bytes")}
		if l == (Limits{}) {
			l.IOPS = 100
		}
		size := rapid.SampledFrom([]int{512, 4 << 10, 128 << 10, 4 << 20}).Draw(rt, "size")
		clients := rapid.IntRange(1, 40).Draw(rt, "clients")
		c := &counted{cold: rapid.Bool().Draw(rt, "cold")}
		const seconds = 4
		synctest.Test(t, func(t *testing.T) {
			d := New(c, l)
			ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
			defer cancel()
			var work sync.WaitGroup
			for i := range clients {
				work.Go(func() {
					for p := make([]byte, size); ask(ctx, d, i%2 == 0, p) == nil && ctx.Err() == nil; {
					}
				})
			}
			work.Wait()
		})
		const span = seconds + 0.1 // a burst ahead
		requests, bytes := float64(c.requests.Load()), float64(c.bytes.Load())
		if l.IOPS > 0 && requests > span*float64(l.IOPS)+float64(clients) || l.BytesPerSecond > 0 && bytes > span*float64(l.BytesPerSecond)+float64(clients*size) {
			rt.Fatalf("%+v: %v requests of %d in %d s", l, requests, size, seconds)
		}
		least := span * float64(l.IOPS)
		if by := span * float64(l.BytesPerSecond) / float64(size); l.IOPS == 0 || l.BytesPerSecond > 0 && by < least {
			least = by
		}
		if requests < 0.9*least-float64(clients)-1 {
			rt.Fatalf("%+v: %v requests of %d in %d s by %d, want %v", l, requests, size, seconds, clients, least)
		}
	})
}

// TestOthersLimitsHoldAtOnce has requests wait that would for hours, until there are no
// limits any more, or their clients are gone: then the next one waits for none of them.
func TestOthersLimitsHoldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &counted{}
		d := New(c, Limits{IOPS: 1})
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		begin := func(ctx context.Context, want error) {
			for range 10_000 {
				work.Go(func() {
					if err := ask(ctx, d, true, make([]byte, 512)); !errors.Is(err, want) {
						t.Errorf("%v, want %v", err, want)
					}
				})
			}
			synctest.Wait()
		}
		if err := ask(ctx, d, true, make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		begin(ctx, context.Canceled)
		cancel()
		work.Wait()
		if err := ask(t.Context(), d, false, make([]byte, 512)); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("behind clients that are gone: %v after %v", err, time.Since(began))
		}
		began = time.Now()
		begin(t.Context(), nil)
		d.Set(Limits{})
		work.Wait()
		if n := c.requests.Load(); time.Since(began) > 0 || n != 10_002 {
			t.Errorf("%d requests after %v", n, time.Since(began))
		}
	})
}

func TestFlushAndTryWaitForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(&counted{}, Limits{IOPS: 1, BytesPerSecond: 1})
		began := time.Now()
		for range 10 {
			d.TryReadAt(make([]byte, 512), 0)
			d.TryWriteFrom(nil, 512, 0)
			d.TryReadTo(nil, 512, 0)
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(began) > 0 {
			t.Error("something waited")
		}
	})
}

func TestTryAllocatesNothing(t *testing.T) {
	p := make([]byte, 512)
	for _, l := range []Limits{{}, {IOPS: 1 << 40, BytesPerSecond: 1 << 50}} {
		d := New(&counted{}, l)
		ws := []blockdev.Write{{Data: p}}
		if n := testing.AllocsPerRun(100, func() {
			if !d.TryReadAt(p, 0) || !d.TryReadTo(nil, 512, 0) || d.TryWriteBatch(ws) != 1 {
				t.Fatal("it waits")
			}
		}); n > 0 {
			t.Errorf("%+v: %v allocations", l, n)
		}
	}
}
