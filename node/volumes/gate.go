package volumes

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// gapMax is how long this process may not have run before it takes for possible that
	// the mesh has given its volumes to others meanwhile.
	gapMax = 5 * time.Second
	// beatInterval is how often it looks.
	beatInterval = time.Second
	// gateTimeout is how long a flush waits for a word on whose the volume is.
	gateTimeout = 30 * time.Second
)

// pulse notices when the process has stood still: stopped, or its host asleep. Safe for
// concurrent use.
type pulse struct {
	now  func() time.Duration // by a clock that goes on while the host sleeps
	last atomic.Int64         // when it was last looked at
	gaps atomic.Uint64        // how often it has stood still
	seen chan struct{}        // has one when there was a gap
}

func newPulse(now func() time.Duration) *pulse {
	p := &pulse{now: now, seen: make(chan struct{}, 1)}
	p.last.Store(int64(now()))
	return p
}

// look notes a gap before this moment.
func (p *pulse) look() {
	now, last := int64(p.now()), p.last.Load()
	if now <= last || !p.last.CompareAndSwap(last, now) || now-last <= int64(gapMax) {
		return
	}
	p.gaps.Add(1)
	select {
	case p.seen <- struct{}{}:
	default:
	}
}

// gate lets what a volume has done be acknowledged while the volume is known to be this
// node's. Safe for concurrent use.
type gate struct {
	pulse *pulse
	open  atomic.Uint64 // one more than the gaps after which it was opened; 0 is shut

	mu   sync.Mutex    // guards what follows
	wake chan struct{} // closed when it is opened, or for good
	dead error         // why it never opens again
}

func newGate(p *pulse) *gate { return &gate{pulse: p, wake: make(chan struct{})} }

// isOpen reports whether something may be acknowledged, by what was noticed so far.
func (g *gate) isOpen() bool { return g.open.Load() == g.pulse.gaps.Load()+1 }

// admit opens it, by what was learnt after so many gaps.
func (g *gate) admit(gaps uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead == nil {
		g.open.Store(gaps + 1)
		close(g.wake)
		g.wake = make(chan struct{})
	}
}

// shut has all wait for admit.
func (g *gate) shut() { g.open.Store(0) }

// end fails all who wait, and who come.
func (g *gate) end(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut()
	if g.dead == nil {
		g.dead = why
		close(g.wake)
	}
}

// pass waits until what was done may be acknowledged. It looks at the clock, so that
// nothing is between it and who is told but a moment.
func (g *gate) pass(ctx context.Context) error {
	if g.pulse.look(); g.isOpen() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	for {
		g.mu.Lock()
		wake, dead := g.wake, g.dead
		g.mu.Unlock()
		switch {
		case dead != nil:
			return dead
		case g.isOpen():
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("%w: whether the volume is this node's still is not known, and nothing is acknowledged before: %w", content.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// gated is a volume whose writes and flushes pass a gate.
type gated struct {
	*volume.Volume
	gate *gate
}

var _ blockdev.BatchWriter = (*gated)(nil)

// WriteAt implements blockdev.Device.
func (d *gated) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.change(ctx, fua, func() error { return d.Volume.WriteAt(ctx, p, off, fua) })
}

// Zero implements blockdev.Device.
func (d *gated) Zero(ctx context.Context, off, length int64, keep, fua bool) error {
	return d.change(ctx, fua, func() error { return d.Volume.Zero(ctx, off, length, keep, fua) })
}

func (d *gated) change(ctx context.Context, fua bool, do func() error) error {
	if !d.gate.isOpen() {
		if err := d.gate.pass(ctx); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && fua {
		err = d.gate.pass(ctx)
	}
	return err
}

// TryWriteFrom implements blockdev.Device.
func (d *gated) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	return d.gate.isOpen() && d.Volume.TryWriteFrom(data, n, off)
}

// TryWriteBatch implements blockdev.BatchWriter.
func (d *gated) TryWriteBatch(ws []blockdev.Write) int {
	if !d.gate.isOpen() {
		return 0
	}
	return blockdev.TryWriteBatch(d.Volume, ws)
}

// Flush implements blockdev.Device.
func (d *gated) Flush(ctx context.Context) error {
	err := d.Volume.Flush(ctx)
	if err == nil {
		err = d.gate.pass(ctx)
	}
	return err
}
