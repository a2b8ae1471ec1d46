// Package doors has the ways to a volume: NBD, and the kernel's block devices.
package doors

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"os"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/ublk"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Config is what Doors are opened with.
type Config struct {
	// NBD opens what NBD is served on, of which the first listener is told to clients.
	NBD func(context.Context) (nbd.Config, error)
	// UBLK configures the kernel's block devices, where it has them.
	UBLK ublk.Config
	// Self is whose the disks in the kernel are.
	Self    trust.PublicKey
	Exports nbd.Exports
	Log     *slog.Logger
}

// Doors are the ways to the volumes of a node. Use: Open, Run.
type Doors struct {
	nbd    *nbd.Server
	socket net.Addr
	ublk   *ublk.Server // nil where the kernel has none
	noUBLK error        // why
	log    *slog.Logger
}

// Open opens them; the listeners are closed when Run ends, or when it fails.
func Open(ctx context.Context, cfg Config) (Doors, error) {
	network, err := cfg.NBD(ctx)
	if err != nil {
		return Doors{}, err
	}
	network.Exports, network.Log = cfg.Exports, cfg.Log
	closeAll := func(err error) (Doors, error) {
		for _, l := range network.Listeners {
			err = errors.Join(err, l.Close())
		}
		return Doors{}, err
	}
	d := Doors{socket: network.Listeners[0].Addr(), log: cfg.Log}
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

// Run serves while the volumes are at work, until ctx ends; leave is called with
// the disks still served.
func (d Doors) Run(ctx context.Context, work func(context.Context) error, leave func(context.Context)) error {
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

// Choose says how a volume is served for which a transport is asked.
func (d Doors) Choose(transport string) (string, error) {
	switch {
	case transport == terms.NBD:
		return terms.NBD, nil
	case d.ublk != nil:
		return terms.UBLK, nil
	case transport == terms.UBLK:
		return "", fmt.Errorf("there is no transport ublk on this node: %w; use nbd or auto", d.noUBLK)
	}
	return terms.NBD, nil
}

// noDiskWaits fails if a volume that NBD is to serve has a disk in the kernel, which may be mounted
// and have writes to give out: they would come again after those of NBD's clients.
func (d Doors) noDiskWaits(e index.Entry) error {
	if e.Transport == terms.NBD || e.Disk == nil {
		return nil
	}
	if _, err := os.Stat(fmt.Sprintf("/sys/class/ublk-char/ublkc%d", *e.Disk)); err != nil {
		return nil
	}
	return fmt.Errorf("%w: its users wait at /dev/ublkb%d, and this node can't serve it: %w; mend that and start the node again, or detach the volume by force, which gives that disk up, and attach it with transport nbd",
		content.ErrUnavailable, *e.Disk, d.noUBLK)
}

// GiveUpDisk removes the disk that the kernel keeps for a volume which could not be served again.
// Its users wait there: with any that is content.ErrConflict, unless forced.
func (d Doors) GiveUpDisk(ctx context.Context, e index.Entry, force bool) error {
	switch {
	case !e.Attached || e.Transport == terms.NBD || e.Disk == nil:
		return nil
	case d.ublk != nil:
		return d.ublk.Remove(ctx, *e.Disk, diskMark(e), force)
	case force:
		return nil
	}
	return d.noDiskWaits(e)
}

// Address is how a volume is served that has a disk, or none, and what clients open.
func (d Doors) Address(name string, disk *ublk.Disk) (transport, path string) {
	if disk != nil {
		return terms.UBLK, disk.Path()
	}
	return terms.NBD, nbd.URI(d.socket, name)
}

// NoDisks says why volumes are not served as block devices, nil if they are.
func (d Doors) NoDisks() error { return d.noUBLK }

// Collectors returns the metrics of both.
func (d Doors) Collectors() []prometheus.Collector {
	if d.ublk == nil {
		return d.nbd.Collectors()
	}
	return append(d.nbd.Collectors(), d.ublk.Collectors()...)
}

// Sweep removes this node's disks from the kernel that no volume has.
func (d Doors) Sweep(ctx context.Context, entries []index.Entry) error {
	if d.ublk == nil {
		return nil
	}
	_, err := d.ublk.Sweep(ctx, func(number int, mark uint32) bool {
		return slices.ContainsFunc(entries, func(e index.Entry) bool {
			return e.Attached && e.Transport != terms.NBD && e.Disk != nil && *e.Disk == number && diskMark(e) == mark
		})
	})
	return err
}

// diskMark marks a volume's disk in the kernel, whose number may become another volume's.
func diskMark(e index.Entry) uint32 { return binary.LittleEndian.Uint32(e.ID[:]) }

// OpenDisk makes a disk of an open volume, or takes its disk up where the last start left
// it, if that is how the volume is served; else it is nil. numbered is called to keep a
// number that is new. A crash before it leaves a disk to sweep.
func (d Doors) OpenDisk(ctx context.Context, e index.Entry, dev blockdev.Device, numbered func(int) error) (*ublk.Disk, error) {
	transport, err := d.Choose(e.Transport)
	switch {
	case err != nil:
		return nil, err
	case transport == terms.NBD:
		return nil, d.noDiskWaits(e)
	}
	number := -1
	if e.Disk != nil {
		number = *e.Disk
	}
	disk, err := d.ublk.Add(ctx, number, diskMark(e), dev)
	if err != nil || disk.Number() == number {
		return disk, err
	}
	if number >= 0 {
		d.log.Warn("the number of a volume's disk is taken, and it has another one now", "volume", e.Name, "device", disk.Path())
	}
	if err := numbered(disk.Number()); err != nil {
		return nil, errors.Join(err, disk.Stop(ctx, true))
	}
	return disk, nil
}

// Detach ends the NBD connections to a volume; see nbd.Server.
func (d Doors) Detach(ctx context.Context, name string) error { return d.nbd.Detach(ctx, name) }

// Rename has NBD's clients have a volume open by another name; see nbd.Server.
func (d Doors) Rename(old, name string) { d.nbd.Rename(old, name) }

// Past knows the snapshots of a volume, and what was written since.
type Past struct {
	// Snapshots returns those of the volume.
	Snapshots func(ctx context.Context) ([]terms.SnapshotView, error)
	*moment.Past
}

// End gives back what was opened for a client of a volume that has left.
func (p Past) End(volume string, log *slog.Logger) {
	if err := p.Close(); err != nil {
		log.Warn("what a client compared a volume with is not closed as it should be", "volume", volume, "err", err)
	}
}

// remembered is a volume as NBD serves it, with what was written since its snapshots.
type remembered struct {
	*limit.Device
	past Past
}

// Remember returns a volume as NBD serves it, with its past.
func Remember(d *limit.Device, past Past) blockdev.Device { return remembered{d, past} }

var _ blockdev.History = remembered{}

func (r remembered) Snapshots(ctx context.Context) ([]uint64, error) {
	views, err := r.past.Snapshots(ctx)
	var numbers []uint64
	for _, s := range views {
		if !s.Orphan {
			numbers = append(numbers, s.Number)
		}
	}
	return numbers, err
}

func (r remembered) Changes(ctx context.Context, from uint64, off, length int64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		for x, err := range r.past.Changes(ctx, from, blockdev.Range{Offset: off, Length: length}) {
			begin, end := max(x.Offset, off), min(x.Offset+x.Length, off+length)
			if !yield(blockdev.Range{Offset: begin, Length: end - begin}, err) || err != nil {
				return
			}
		}
	}
}
