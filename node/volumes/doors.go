package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/doors"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// ErrHandover, as the cause of the end of Run's context, says that another process will serve the volumes in a moment.
var ErrHandover = errors.New("the volumes are handed over")

// NoDisks says why volumes are not served as block devices, nil if they are.
func (v *Volumes) NoDisks() error { return v.doors.NoDisks() }

// leaveDisks removes the disks that nobody uses: one without a server holds up whoever looks at it.
// Before a handover all stay, and what they have to write is written while they are still served.
func (v *Volumes) leaveDisks(ctx context.Context) {
	handover := errors.Is(context.Cause(ctx), ErrHandover)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTimeout)
	defer cancel()
	v.each(func(name string, d *attached) {
		switch {
		case d.disk == nil: // over NBD, or not served
		case handover:
			_ = d.vol.Flush(ctx) // Close says the same
		default:
			if err := d.disk.Stop(ctx, false); err != nil {
				v.cfg.Log.Warn("a disk stays with the kernel, and its users wait until this node is back", "volume", name, "device", d.disk.Path(), "err", err)
			}
		}
	})
}

// exports is the door's view of the volumes.
type exports struct{ v *Volumes }

// Lookup implements nbd.Exports. It waits for a volume that is opening, or rolled back.
func (x exports) Lookup(ctx context.Context, name string) (blockdev.Device, func(), error) {
	for {
		d := x.v.device(name)
		var wait <-chan struct{}
		switch {
		case d == nil:
			return nil, nil, fmt.Errorf("volume %q: %w; `grange volume ls` shows those of this node", name, content.ErrNotFound)
		case d.opening != nil:
			wait = d.opening
		case d.err != nil:
			return nil, nil, fmt.Errorf("volume %q can't be served: %w", name, d.err)
		case d.disk != nil:
			return nil, nil, fmt.Errorf("volume %q: %w: it is served as %s, not over NBD", name, content.ErrConflict, d.disk.Path())
		default:
			leave, opened := d.users.Enter()
			if wait = opened; leave != nil && x.v.device(name) == d { // who closes it shuts it before that takes it away
				past := doors.Past{Snapshots: func(ctx context.Context) ([]terms.SnapshotView, error) { return x.v.Snapshots(ctx, name) }, Past: x.v.past(d)}
				return doors.Remember(d.front, past), func() { defer leave(); past.End(name, x.v.cfg.Log) }, nil
			} else if leave != nil {
				leave()
				continue
			}
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("volume %q: opening: %w", name, context.Cause(ctx))
		}
	}
}

// List implements nbd.Exports: those that a client can open, if it waits.
func (x exports) List(context.Context) ([]string, error) {
	var out []string
	for name, d := range x.v.devices {
		if d.err == nil && d.disk == nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}
