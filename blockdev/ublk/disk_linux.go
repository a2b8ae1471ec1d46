package ublk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// startTimeout bounds the reads of a disk's first moments, by which the kernel
	// looks for partitions.
	startTimeout = 5 * time.Second
	// beginning is where partition tables are, in bytes.
	beginning = 32 << 10
	// openTimeout is how long udev may take to give the node its device.
	openTimeout = 10 * time.Second
	openPause   = 10 * time.Millisecond
	// cancelTimeout is how long a device may take to notice that its requests
	// were cancelled.
	cancelTimeout = 5 * time.Second
	// complainInterval is how often a disk may log that requests fail.
	complainInterval = time.Minute

	// rangeSectorsMax bounds a discard or zeroing, which come whole: 1 GiB, well
	// below what the kernel's counts can hold.
	rangeSectorsMax = 1 << 30 / sectorSize
	physicalShift   = 12
)

// What ends requests, and the commands that wait for them.
var (
	errLeft    = errors.New("the server has left the disk")
	errStopped = errors.New("the disk was stopped")
	errHeld    = fmt.Errorf("%w: requests are held by a device that does not return", content.ErrUnavailable)
)

// errNotTakenUp says that a disk was there, and that nobody can recover it.
var errNotTakenUp = errors.New("its recovery was broken off")

// Disk is a device that the kernel has.
type Disk struct {
	server   *Server
	device   blockdev.Device
	owner    uint64 // what marks it in the kernel
	complain rate.Sometimes

	ctx      context.Context // of requests
	cancel   context.CancelCauseFunc
	reads    context.Context // of those that may be cut before the others
	cut      context.CancelCauseFunc
	starting context.Context // of reads until started
	endStart context.CancelFunc
	started  atomic.Bool

	stopping sync.Mutex // one Stop at a time, before Server.mu

	// What follows belongs to whoever has announced a change of the disk.
	id     uint32
	made   bool                    // the kernel has it
	char   int                     // file descriptor of /dev/ublkcN, -1 while there is none
	queues []*queue                // those that threads have
	refuse context.CancelCauseFunc // ends the wait for the threads' first requests
}

func newDisk(s *Server, mark uint32, device blockdev.Device) *Disk {
	d := &Disk{server: s, device: device, owner: s.owner(mark), char: -1, complain: rate.Sometimes{First: 1, Interval: complainInterval}}
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	d.reads, d.cut = context.WithCancelCause(d.ctx)
	return d
}

func devicePath(id uint32) string { return fmt.Sprintf("/dev/ublkb%d", id) }

// Path is what clients open.
func (d *Disk) Path() string { return devicePath(d.id) }

// Number is N in /dev/ublkbN.
func (d *Disk) Number() int { return int(d.id) }

func (d *Disk) readContext() context.Context {
	if d.started.Load() {
		return d.reads
	}
	return d.starting
}

// start takes a disk up or makes it.
func (d *Disk) start(ctx context.Context, number int) error {
	if number < 0 {
		return d.create(ctx, newID)
	}
	id := uint32(number)
	if !d.server.claim(d, id, false) {
		return d.create(ctx, newID)
	}
	control := d.server.control
	i, err := control.info(id)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return d.create(ctx, id)
	case err != nil:
		return fmt.Errorf("%s: %w", devicePath(id), err)
	case i.owner != d.owner:
		return d.create(ctx, newID)
	}
	held := notHeld
	if i.state != stateDead {
		p, err := control.params(id)
		if err != nil {
			return fmt.Errorf("%s: %w", devicePath(id), err)
		}
		ours := i.flags&(featuresNeeded|featuresOther) == featuresNeeded
		fits := ours && p.fits(d.params(i))
		if fits && (p.basic.sectors == d.sectors() || control.features&featureResize != 0) {
			return d.takeUp(ctx, i)
		}
		if err := i.servedElsewhere(); err != nil {
			return err
		}
		held, err = hold(id)
		switch {
		case errors.Is(err, content.ErrConflict) && fits:
			return d.takeUp(ctx, i)
		case errors.Is(err, content.ErrConflict) && !ours:
			return fmt.Errorf("%s: %w: it is in use, and another version of this program made it, which alone can serve it: start that one, end the use, then start this one again", devicePath(id), content.ErrConflict)
		case err != nil:
			return fmt.Errorf("it is there with another size, or for writing: %w", err)
		}
	}
	if err := control.remove(ctx, id, held); err != nil {
		return err
	}
	return d.create(ctx, id)
}

func (d *Disk) create(ctx context.Context, id uint32) error {
	// Not sooner: others may read already while the start ends.
	d.starting, d.endStart = context.WithTimeout(d.ctx, startTimeout)
	unhook := context.AfterFunc(ctx, d.endStart) // the kernel gives no start up that waits for a read
	defer unhook()
	d.prime(ctx)
	c := d.server.cfg
	i, err := d.server.control.add(info{
		id: id, queues: uint16(c.Queues), depth: uint16(c.Depth), requestMax: requestMax,
		flags: featuresNeeded, owner: d.owner,
	})
	if errors.Is(err, unix.EEXIST) && id != newID { // since it was looked for
		return d.create(ctx, newID)
	}
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("make a device: %w: the kernel has as many as the module's parameter ublks_max allows", err)
	}
	if err != nil {
		return fmt.Errorf("make a device: %w", err)
	}
	d.server.claim(d, i.id, true)
	d.made = true
	if err := d.begin(ctx, i); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", devicePath(i.id), err), d.undo(ctx))
	}
	d.started.Store(true)
	return nil
}

func (d *Disk) begin(ctx context.Context, i info) error {
	if err := d.server.control.setParams(i.id, d.params(i)); err != nil {
		return err
	}
	queues := newQueues(d, i)
	if err := d.connect(ctx, queues); err != nil {
		return err
	}
	return d.engage(ctx, queues, ctrlStart)
}

// prime reads what the kernel is going to look at while it starts the disk, and
// what it will not get in time fails at once: a server that is killed while the
// kernel waits inside of the start leaves a disk that nobody can take up or remove.
func (d *Disk) prime(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p := make([]byte, min(beginning, d.device.Geometry().Size))
	if err := d.device.ReadAt(ctx, p, 0); err != nil {
		d.server.cfg.Log.Warn("ublk: the beginning of a disk can't be read, and its partitions are not looked for", "error", err)
		d.endStart()
	}
}

// takeUp goes on where the last server ended. An error leaves the disk for another
// try, but for errNotTakenUp: then it is gone.
//
// The kernel has no way back from the middle of a recovery: once begun it is not given
// up.
func (d *Disk) takeUp(ctx context.Context, i info) error {
	d.started.Store(true)
	queues := newQueues(d, i)
	control, failed := d.server.control, "take up "+d.Path()+": %w"
	if err := control.startRecovery(ctx, i); err != nil && !errors.Is(err, errBegun) {
		return fmt.Errorf(failed, err)
	}
	err := d.connect(d.ctx, queues)
	if errors.Is(err, errServed) {
		now, _ := control.info(i.id) // if that fails, one that nobody serves
		if quicker := now.servedElsewhere(); quicker != nil {
			return quicker
		}
		return errors.Join(fmt.Errorf(failed+": %w", errNotTakenUp, err), control.remove(d.ctx, i.id, notHeld))
	}
	if err != nil {
		return fmt.Errorf(failed, err)
	}
	d.made = true
	err = d.engage(d.ctx, queues, ctrlEndRecovery)
	if err != nil {
		return errors.Join(fmt.Errorf(failed+": %w", errNotTakenUp, err), d.undo(ctx))
	}
	if err := d.grow(ctx); err != nil {
		d.server.cfg.Log.Warn("ublk: a disk is smaller than its volume", "error", err)
	}
	return nil
}

// Grow has the users of the disk see the size that its device has grown to. Where the
// kernel can't, before Linux 6.16, that is errors.ErrUnsupported, and they go on with the
// old one.
func (d *Disk) Grow(ctx context.Context) error {
	d.stopping.Lock()
	defer d.stopping.Unlock()
	ctx, end, err := d.server.change(ctx, d)
	if err != nil {
		return err
	}
	defer end()
	if err := d.grow(ctx); err != nil {
		return fmt.Errorf("ublk: %w", err)
	}
	return nil
}

func (d *Disk) grow(ctx context.Context) error {
	p, err := d.server.control.params(d.id)
	if err != nil || p.basic.sectors == d.sectors() {
		return err
	}
	return d.server.control.resize(ctx, d.id, d.sectors())
}

func (d *Disk) sectors() uint64 { return uint64(d.device.Geometry().Size / sectorSize) }

// undo removes a disk that no client has begun to use, or can go on with, unless no
// thread runs any more: the next server sees to what is left.
func (d *Disk) undo(ctx context.Context) error {
	if d.ctx.Err() != nil {
		return nil
	}
	return d.destroy(ctx, notHeld)
}

func (d *Disk) params(i info) params {
	g := d.device.Geometry()
	p := params{types: paramBasic}
	p.basic.attrs = attrVolatileCache | attrFUA
	if g.ReadOnly {
		p.basic.attrs |= attrReadOnly
	}
	p.basic.logicalShift, p.basic.physicalShift, p.basic.minShift = shift(g.BlockSize), physicalShift, physicalShift
	p.basic.optShift = shift(cmp.Or(min(g.PreferredSize, int(i.requestMax)), g.BlockSize))
	p.basic.maxSectors = i.requestMax / sectorSize
	p.basic.sectors = d.sectors()
	if !g.ReadOnly {
		p.types |= paramDiscard
		p.discard.granularity = uint32(g.BlockSize)
		p.discard.maxSectors, p.discard.maxZeroSectors, p.discard.maxSegments = rangeSectorsMax, rangeSectorsMax, 1
	}
	return p
}

func shift(n int) uint8 { return uint8(bits.Len(uint(n)) - 1) }

// connect opens the device and maps the requests of its queues. On an error it
// lets go of the queues too.
func (d *Disk) connect(ctx context.Context, queues []*queue) error {
	char, err := openChar(ctx, d.id)
	if err != nil {
		return err
	}
	for _, q := range queues {
		if err := q.connect(char); err != nil {
			return errors.Join(err, closeAll(queues), unix.Close(char))
		}
	}
	d.char = char
	return nil
}

// openChar opens /dev/ublkcN. The kernel makes it for root, and it may take until
// udev has given it to others.
func openChar(ctx context.Context, id uint32) (int, error) {
	path := fmt.Sprintf("/dev/ublkc%d", id)
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for {
		char, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return char, nil
		case err == unix.EINTR:
			continue
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) && err != unix.EBUSY:
			return -1, os.NewSyscallError("open "+path, err)
		}
		select {
		case <-time.After(openPause):
		case <-ctx.Done():
			switch {
			case err == unix.EBUSY:
				err = errServed
			case errors.Is(err, fs.ErrPermission):
				err = fmt.Errorf("%w: give the node's user access to ublkc[0-9]* by the udev rule", err)
			}
			return -1, os.NewSyscallError("open "+path, err)
		}
	}
}

// engage gives the queues to threads, and has the kernel begin with this process as
// the server: command is the one that says so.
func (d *Disk) engage(ctx context.Context, queues []*queue, command uint32) error {
	ctx, d.refuse = context.WithCancelCause(ctx)
	defer d.refuse(nil)
	d.queues = queues
	for _, q := range queues {
		d.server.place().adopt(q)
	}
	// Not while requests are still to be asked for: a stop cancels those alone that
	// were. Threads don't keep anybody waiting, or end, and d.ctx with them.
	for _, q := range queues {
		select {
		case <-q.fetched:
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		}
	}
	return d.server.control.order(ctx, command, d.id, os.Getpid())
}

// Stop removes the disk. One that is in use is not touched, which is
// content.ErrConflict, unless forced: then its users get errors, and so do reads that
// wait. Other requests in flight are answered first; when ctx ends before they are, they
// are cancelled.
// A disk that was stopped already is success.
func (d *Disk) Stop(ctx context.Context, force bool) error {
	d.stopping.Lock()
	defer d.stopping.Unlock()
	ctx, end, err := d.server.change(ctx, d)
	if err != nil {
		return err
	}
	defer end()
	if d.made {
		held := notHeld
		if !force && d.char >= 0 {
			if held, err = hold(d.id); err != nil {
				return err
			}
		}
		if force {
			d.cut(errStopped)
		}
		if err := d.destroy(ctx, held); err != nil {
			return err
		}
	}
	d.server.forget(d)
	return nil
}

// destroy removes the disk from the kernel and lets go of it, and of what hold
// returned.
func (d *Disk) destroy(ctx context.Context, held int) error {
	unhook := context.AfterFunc(ctx, func() { d.cancel(errStopped) })
	defer unhook()
	patient, cancel := withGrace(ctx)
	defer cancel()
	err := d.server.control.stop(patient, d.id, held)
	switch {
	case err != nil && patient.Err() != nil:
		return fmt.Errorf("stop %s: %w", d.Path(), errHeld)
	case err != nil:
		return err
	}
	for _, q := range d.queues {
		select {
		case <-q.ended:
		case <-patient.Done():
			return fmt.Errorf("stop %s: %w", d.Path(), errHeld)
		}
	}
	d.cancel(errStopped)
	if err := d.close(); err != nil {
		return err
	}
	if err := d.server.control.delete(patient, d.id); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", d.Path(), err)
	}
	d.made = false
	return nil
}

// withGrace is a context that ends cancelTimeout after ctx.
func withGrace(ctx context.Context) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(cancelTimeout, cancel) })
	return later, func() { unhook(); cancel() }
}

// close lets go of the kernel's part; the threads must have let go of the queues.
func (d *Disk) close() error {
	err := closeAll(d.queues)
	if d.char >= 0 {
		err = errors.Join(err, unix.Close(d.char))
	}
	d.queues, d.char = nil, -1
	return err
}
