// Package gate keeps a node from acknowledging what is written to a volume that may be
// another's by now, because this process stood still or the record says so.
package gate

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
	// BeatInterval is how often it looks.
	BeatInterval = time.Second
	// gateTimeout is how long a flush waits for a word on whose the volume is.
	gateTimeout = 30 * time.Second
)

// Pulse notices when the process has stood still: stopped, or its host asleep. Safe for
// concurrent use.
type Pulse struct {
	now  func() time.Duration // by a clock that goes on while the host sleeps
	last atomic.Int64         // when it was last looked at
	gaps atomic.Uint64        // how often it has stood still
	Seen chan struct{}        // has one when there was a gap
}

// NewPulse returns a Pulse by a clock, the system's when nil.
func NewPulse(now func() time.Duration) *Pulse {
	if now == nil {
		now = boottime
	}
	p := &Pulse{now: now, Seen: make(chan struct{}, 1)}
	p.last.Store(int64(now()))
	return p
}

// Gaps is how often it has stood still.
func (p *Pulse) Gaps() uint64 { return p.gaps.Load() }

// Look notes a gap before this moment.
func (p *Pulse) Look() {
	now, last := int64(p.now()), p.last.Load()
	gap := now-last > int64(gapMax)
	if gap { // before anybody else finds that this moment was looked at; two may count it
		p.gaps.Add(1)
	}
	if now <= last || !p.last.CompareAndSwap(last, now) || !gap {
		return
	}
	select {
	case p.Seen <- struct{}{}:
	default:
	}
}

// Gate lets what a volume has done be acknowledged while the volume is known to be this
// node's. Safe for concurrent use.
type Gate struct {
	pulse *Pulse
	open  atomic.Uint64 // one more than the gaps after which it was opened; 0 is shut

	mu   sync.Mutex    // guards what follows
	wake chan struct{} // closed when it is opened, or for good
	dead error         // why it never opens again
}

// New returns one that is shut.
func New(p *Pulse) *Gate { return &Gate{pulse: p, wake: make(chan struct{})} }

// IsOpen reports whether something may be acknowledged, by what was noticed so far.
func (g *Gate) IsOpen() bool { return g.open.Load() == g.pulse.gaps.Load()+1 }

// Admit opens it, by what was learnt after so many gaps.
func (g *Gate) Admit(gaps uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead == nil {
		g.open.Store(gaps + 1)
		close(g.wake)
		g.wake = make(chan struct{})
	}
}

// Shut has all wait for Admit.
func (g *Gate) Shut() { g.open.Store(0) }

// End fails all who wait, and who come.
func (g *Gate) End(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.Shut()
	if g.dead == nil {
		g.dead = why
		close(g.wake)
	}
}

// Pass waits until what was done may be acknowledged. It looks at the clock, so that
// nothing is between it and who is told but a moment.
func (g *Gate) Pass(ctx context.Context) error {
	if g.pulse.Look(); g.IsOpen() {
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
		case g.IsOpen():
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("%w: whether the volume is this node's still is not known, and nothing is acknowledged before: %w", content.ErrUnavailable, context.Cause(ctx))
		}
	}
}

// Device is a volume whose writes and flushes pass a gate.
type Device struct {
	*volume.Volume
	Gate *Gate
}

var _ blockdev.BatchWriter = (*Device)(nil)

func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.change(ctx, fua, func() error { return d.Volume.WriteAt(ctx, p, off, fua) })
}

func (d *Device) Zero(ctx context.Context, off, length int64, keep, fua bool) error {
	return d.change(ctx, fua, func() error { return d.Volume.Zero(ctx, off, length, keep, fua) })
}

// pass is Gate.Pass for a volume that has anything to acknowledge.
func (d *Device) pass(ctx context.Context) error {
	if d.Geometry().ReadOnly {
		return nil
	}
	return d.Gate.Pass(ctx)
}

func (d *Device) change(ctx context.Context, fua bool, do func() error) error {
	if !d.Gate.IsOpen() {
		if err := d.pass(ctx); err != nil {
			return err
		}
	}
	err := do()
	if err == nil && fua {
		err = d.pass(ctx)
	}
	return err
}

func (d *Device) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	return d.Gate.IsOpen() && d.Volume.TryWriteFrom(data, n, off)
}

// TryWriteBatch implements blockdev.BatchWriter.
func (d *Device) TryWriteBatch(ws []blockdev.Write) int {
	if !d.Gate.IsOpen() {
		return 0
	}
	return blockdev.TryWriteBatch(d.Volume, ws)
}

func (d *Device) Flush(ctx context.Context) error {
	if d.Geometry().ReadOnly { // nothing was written, and nobody else is asked to hold it
		return nil
	}
	err := d.Volume.Flush(ctx)
	if err == nil {
		err = d.pass(ctx)
	}
	return err
}

// Watch looks now and again until ctx ends, and at once when somebody has seen a gap; look
// is called each time.
func (p *Pulse) Watch(ctx context.Context, look func()) error {
	tick := time.Tick(BeatInterval)
	for {
		select {
		case <-tick:
		case <-p.Seen:
		case <-ctx.Done():
			return nil
		}
		p.Look()
		look()
	}
}
