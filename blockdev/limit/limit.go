// Package limit bounds how much the clients of a device may ask of it in a second.
package limit

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

// burst is how long an idle device saves up for: a client that comes back is not made to
// wait at its first requests, and has no second's worth of them at once.
const burst = 100 * time.Millisecond

// Limits are what a device does in a second at most; 0 is no limit.
type Limits struct {
	IOPS           int64 // reads, writes, discards and zeroings
	BytesPerSecond int64 // that are read and written, together
}

// Check fails with content.ErrInvalid for what is no limit.
func (l Limits) Check() error {
	if l.IOPS < 0 || l.BytesPerSecond < 0 {
		return fmt.Errorf("limits of %d requests and %d bytes a second: %w: want 0, which is none, or more", l.IOPS, l.BytesPerSecond, content.ErrInvalid)
	}
	return nil
}

// Device is a device with limits, which may change at any time. A request beyond them
// waits on the goroutine of its caller, and nobody else does: no Try takes what is not
// there. A flush never waits. Without limits it costs a look at a pointer.
type Device struct {
	blockdev.Device
	pace atomic.Pointer[pace] // nil: no limits
}

var _ blockdev.BatchWriter = (*Device)(nil)

// New gives a device limits that hold.
func New(d blockdev.Device, l Limits) *Device {
	out := &Device{Device: d}
	out.Set(l)
	return out
}

// Set changes the limits, of those too that wait.
func (d *Device) Set(l Limits) {
	var next *pace
	if l != (Limits{}) {
		next = &pace{limits: l, began: time.Now(), over: make(chan struct{})}
	}
	if old := d.pace.Swap(next); old != nil {
		close(old.over)
	}
}

// Limits returns those in force.
func (d *Device) Limits() Limits {
	if p := d.pace.Load(); p != nil {
		return p.limits
	}
	return Limits{}
}

// wait returns when n bytes may be read or written.
func (d *Device) wait(ctx context.Context, n int) error {
	for p := d.pace.Load(); p != nil; p = d.pace.Load() {
		if over, err := p.wait(ctx, n); !over {
			return err
		}
	}
	return nil
}

func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.wait(ctx, len(p)); err != nil {
		return err
	}
	return d.Device.ReadAt(ctx, p, off)
}

func (d *Device) TryReadAt(p []byte, off int64) bool {
	x := d.pace.Load()
	return x.open(len(p)) && d.Device.TryReadAt(p, off) && x.spend(len(p))
}

func (d *Device) TryReadTo(w io.WriterAt, n int, off int64) bool {
	x := d.pace.Load()
	return x.open(n) && d.Device.TryReadTo(w, n, off) && x.spend(n)
}

func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.wait(ctx, len(p)); err != nil {
		return err
	}
	return d.Device.WriteAt(ctx, p, off, fua)
}

func (d *Device) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	x := d.pace.Load()
	return x.open(n) && d.Device.TryWriteFrom(data, n, off) && x.spend(n)
}

// TryWriteBatch implements blockdev.BatchWriter.
func (d *Device) TryWriteBatch(ws []blockdev.Write) int {
	x := d.pace.Load()
	if x == nil {
		return blockdev.TryWriteBatch(d.Device, ws)
	}
	for i, w := range ws {
		if !x.open(len(w.Data)) || blockdev.TryWriteBatch(d.Device, ws[i:i+1]) == 0 {
			return i
		}
		x.spend(len(w.Data))
	}
	return len(ws)
}

func (d *Device) Zero(ctx context.Context, off, length int64, keep, fua bool) error {
	if err := d.wait(ctx, 0); err != nil {
		return err
	}
	return d.Device.Zero(ctx, off, length, keep, fua)
}

// pace says when requests may be made: each takes its time of both limits, and the times
// of a limit lie behind each other (which is GCRA). Unlike the buckets of x/time/rate it
// takes a request longer than a burst, and is given back what nobody waits for any more.
type pace struct {
	limits Limits
	began  time.Time
	over   chan struct{} // closed when other limits hold

	mu         sync.Mutex
	ops, bytes time.Duration // guarded by mu: since began, until when what was asked for takes
}

// take returns what the time until then becomes when something takes cost.
func take(until, now, cost time.Duration) time.Duration {
	return max(until, now-max(burst, cost)) + cost
}

// costs returns the times that a request of n bytes takes.
func (p *pace) costs(n int) (ops, bytes time.Duration) {
	if p.limits.IOPS > 0 {
		ops = time.Second / time.Duration(p.limits.IOPS)
	}
	if p.limits.BytesPerSecond > 0 {
		bytes = time.Duration(float64(n) / float64(p.limits.BytesPerSecond) * float64(time.Second))
	}
	return ops, bytes
}

// open reports whether a request of n bytes need not wait. Nil has no limits.
func (p *pace) open(n int) bool {
	if p == nil {
		return true
	}
	ops, bytes := p.costs(n)
	now := time.Since(p.began)
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(take(p.ops, now, ops), take(p.bytes, now, bytes)) <= now
}

// spend counts a request of n bytes that was made, and is true.
func (p *pace) spend(n int) bool {
	if p != nil {
		p.delay(n)
	}
	return true
}

// delay counts a request, and returns how long it has to wait.
func (p *pace) delay(n int) time.Duration {
	ops, bytes := p.costs(n)
	now := time.Since(p.began)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ops, p.bytes = take(p.ops, now, ops), take(p.bytes, now, bytes)
	return max(p.ops, p.bytes) - now
}

// wait waits for a request's turn; over is true when other limits hold by now.
func (p *pace) wait(ctx context.Context, n int) (over bool, err error) {
	delay := p.delay(n)
	if delay <= 0 {
		return false, nil
	}
	select {
	case <-time.After(delay):
		return false, nil
	case <-p.over:
		return true, nil
	case <-ctx.Done():
		ops, bytes := p.costs(n)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ops, p.bytes = p.ops-ops, p.bytes-bytes
		return false, fmt.Errorf("wait for the limits of the volume: %w", context.Cause(ctx))
	}
}
