package volumes

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/content"
)

// ErrHandover, as the cause of the end of Run's context, says that another
// process will serve the volumes in a moment.
var ErrHandover = errors.New("the volumes are handed over")

const (
	// leaveTimeout is how long a connection may take to end whose client has.
	leaveTimeout = time.Second
	leavePause   = 10 * time.Millisecond
)

// doors are the ways to a volume.
type doors struct {
	nbd    *nbd.Server
	socket net.Addr
	ublk   *ublk.Server // nil where the kernel has none
	noUBLK error        // why
}

func openDoors(ctx context.Context, cfg Config, x exports) (doors, error) {
	network, err := cfg.NBD(ctx)
	if err != nil {
		return doors{}, err
	}
	network.Exports, network.Log = x, cfg.Log
	closeAll := func(err error) (doors, error) {
		for _, l := range network.Listeners {
			err = errors.Join(err, l.Close())
		}
		return doors{}, err
	}
	d := doors{socket: network.Listeners[0].Addr()}
	if d.nbd, err = nbd.New(network); err != nil {
		return closeAll(err)
	}
	disks := cfg.UBLK
	disks.Owner, disks.Log = cmp.Or(binary.LittleEndian.Uint32(cfg.Self[:]), 1), cfg.Log // 0 would be nobody
	d.ublk, d.noUBLK = ublk.New(disks)
	switch {
	case errors.Is(d.noUBLK, content.ErrInvalid):
		return closeAll(d.noUBLK)
	case d.noUBLK != nil:
		cfg.Log.Info("volumes are served over NBD, not as block devices", "why", d.noUBLK)
	}
	return d, nil
}

// run serves while the volumes are at work, until ctx ends; leave is called with
// the disks still served.
func (d doors) run(ctx context.Context, work func(context.Context) error, leave func(context.Context)) error {
	group, above := errgroup.WithContext(ctx)
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	if d.ublk != nil {
		group.Go(func() error { return d.ublk.Run(below) })
	}
	upper, inside := errgroup.WithContext(above)
	upper.Go(func() error { return work(inside) })
	upper.Go(func() error { return d.nbd.Run(inside) })
	group.Go(func() error {
		defer stop()
		err := upper.Wait()
		leave(ctx)
		return err
	})
	return group.Wait()
}

// choose says how a volume is served for which a transport is asked.
func (d doors) choose(transport string) (string, error) {
	switch {
	case transport == transportNBD:
		return transportNBD, nil
	case d.ublk != nil:
		return transportUBLK, nil
	case transport == transportUBLK:
		return "", fmt.Errorf("there is no transport ublk on this node: %w; use nbd or auto", d.noUBLK)
	}
	return transportNBD, nil
}

// noDiskWaits fails if a volume that NBD is to serve has a disk in the kernel, which may
// be mounted and have writes to give out: they would come again after those of NBD's
// clients.
func (d doors) noDiskWaits(e index.Entry) error {
	if e.Transport == transportNBD || e.Disk == nil {
		return nil
	}
	if _, err := os.Stat(fmt.Sprintf("/sys/class/ublk-char/ublkc%d", *e.Disk)); err != nil {
		return nil
	}
	return fmt.Errorf("%w: its users wait at /dev/ublkb%d, and this node can't serve it: %w; mend that and start the node again, or detach the volume by force, which gives that disk up, and attach it with transport nbd",
		content.ErrUnavailable, *e.Disk, d.noUBLK)
}

// giveUpDisk removes the disk that the kernel keeps for a volume which could not be
// served again. Its users wait there: with any that is content.ErrConflict, unless
// forced.
func (d doors) giveUpDisk(ctx context.Context, e index.Entry, force bool) error {
	switch {
	case !e.Attached || e.Transport == transportNBD || e.Disk == nil:
		return nil
	case d.ublk != nil:
		return d.ublk.Remove(ctx, *e.Disk, diskMark(e), force)
	case force:
		return nil
	}
	return d.noDiskWaits(e)
}

// serves reports whether a device is served as asked.
func (d doors) serves(x *attached, transport string) bool {
	return transport == transportAuto || (transport == transportUBLK) == (x.disk != nil)
}

// address is how a device is served, and what clients open.
func (d doors) address(name string, x *attached) (transport, path string) {
	if x.disk != nil {
		return transportUBLK, x.disk.Path()
	}
	return transportNBD, nbd.URI(d.socket, name)
}

// NoDisks says why volumes are not served as block devices, nil if they are.
func (v *Volumes) NoDisks() error { return v.doors.noUBLK }

func (d doors) collectors() []prometheus.Collector {
	if d.ublk == nil {
		return d.nbd.Collectors()
	}
	return append(d.nbd.Collectors(), d.ublk.Collectors()...)
}

// sweep removes this node's disks from the kernel that no volume has.
func (d doors) sweep(ctx context.Context, entries []index.Entry) error {
	if d.ublk == nil {
		return nil
	}
	_, err := d.ublk.Sweep(ctx, func(number int, mark uint32) bool {
		return slices.ContainsFunc(entries, func(e index.Entry) bool {
			return e.Attached && e.Transport != transportNBD && e.Disk != nil && *e.Disk == number && diskMark(e) == mark
		})
	})
	return err
}

// diskMark marks a volume's disk in the kernel, whose number may become another
// volume's.
func diskMark(e index.Entry) uint32 { return binary.LittleEndian.Uint32(e.ID[:]) }

// openDisk makes a disk of an open volume, or takes its disk up where the last
// start left it, if that is how the volume is served.
func (v *Volumes) openDisk(ctx context.Context, e index.Entry, d *attached) error {
	transport, err := v.doors.choose(e.Transport)
	switch {
	case err != nil:
		return err
	case transport == transportNBD:
		return v.doors.noDiskWaits(e)
	}
	number := -1
	if e.Disk != nil {
		number = *e.Disk
	}
	if d.disk, err = v.doors.ublk.Add(ctx, number, diskMark(e), d.front); err != nil || d.disk.Number() == number {
		return err
	}
	if number >= 0 {
		v.cfg.Log.Warn("the number of a volume's disk is taken, and it has another one now", "volume", e.Name, "device", d.disk.Path())
	}
	if err := v.numbered(e.Name, d.disk.Number()); err != nil {
		return errors.Join(err, d.disk.Stop(ctx, true))
	}
	return nil
}

// numbered keeps the number of a volume's disk. A crash before it leaves a disk to
// sweep.
func (v *Volumes) numbered(name string, number int) error {
	_, err := v.index.Change(name, func(e *index.Entry) { e.Disk = &number })
	return err
}

// unused fails with content.ErrConflict while NBD clients have a volume open. Those
// that have just ended may be a moment about it.
func (d doors) unused(ctx context.Context, name string) error {
	tick := time.NewTicker(leavePause)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	for {
		n := d.nbd.Clients(name)
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %d NBD connections have it open; end them, or force it", content.InUse, n)
		}
	}
}

// leaveDisks removes the disks that nobody uses: one without a server holds up
// whoever looks at it. Before a handover all stay, and what they have to write is
// written while they are still served.
func (v *Volumes) leaveDisks(ctx context.Context) {
	handover := errors.Is(context.Cause(ctx), ErrHandover)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachTimeout)
	defer cancel()
	_ = v.each(func(name string, d *attached) error { // none fails
		switch {
		case d.disk == nil: // over NBD, or not served
		case handover:
			_ = d.vol.Flush(ctx) // Close says the same
		default:
			if err := d.disk.Stop(ctx, false); err != nil {
				v.cfg.Log.Warn("a disk stays with the kernel, and its users wait until this node is back", "volume", name, "device", d.disk.Path(), "err", err)
			}
		}
		return nil
	})
}

// exports is the door's view of the volumes.
type exports struct{ v *Volumes }

// Lookup implements nbd.Exports. It waits for a volume that is opening.
func (x exports) Lookup(ctx context.Context, name string) (blockdev.Device, func(), error) {
	for {
		d := x.use(name)
		switch {
		case d == nil:
			return nil, nil, fmt.Errorf("volume %q: %w; `grange volume ls` shows those of this node", name, content.ErrNotFound)
		case d.opening != nil:
			select {
			case <-d.opening:
			case <-ctx.Done():
				return nil, nil, fmt.Errorf("volume %q: opening: %w", name, context.Cause(ctx))
			}
		case d.err != nil:
			return nil, nil, fmt.Errorf("volume %q can't be served: %w", name, d.err)
		case d.disk != nil:
			return nil, nil, fmt.Errorf("volume %q: %w: it is served as %s, not over NBD", name, content.ErrConflict, d.disk.Path())
		default:
			return remembered{d.front, x.v, name}, d.users.Done, nil
		}
	}
}

// use returns what is under a name, counted as used where NBD serves it: who closes a
// device takes it away first.
func (x exports) use(name string) *attached {
	x.v.mu.RLock()
	defer x.v.mu.RUnlock()
	d := x.v.open[name]
	if d != nil && d.vol != nil && d.disk == nil {
		d.users.Add(1)
	}
	return d
}

// List implements nbd.Exports: those that a client can open, if it waits.
func (x exports) List(context.Context) ([]string, error) {
	x.v.mu.RLock()
	defer x.v.mu.RUnlock()
	var out []string
	for name, d := range x.v.open {
		if d.err == nil && d.disk == nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}
