package ublk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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
	// recoverTimeout is how long the server before may take to be gone.
	recoverTimeout = 10 * time.Second
	recoverPause   = 2 * time.Millisecond
	// cancelTimeout is how long a device may take to notice that its requests
	// were cancelled.
	cancelTimeout = 5 * time.Second
	// deleteTimeout is how long a number may take to be free again; what was not
	// in use takes milliseconds.
	deleteTimeout = 2 * time.Second
	// complainInterval is how often a disk may log that requests fail.
	complainInterval = time.Minute

	// rangeSectorsMax bounds a discard or zeroing, which come whole: 1 GiB, well
	// below what the kernel's counts can hold.
	rangeSectorsMax = 1 << 30 / sectorSize
	physicalShift   = 12
)

var (
	errLeft    = errors.New("the server has left the disk")
	errStopped = errors.New("the disk was stopped")
	// errNotTakenUp says that a disk was there, and could not be recovered.
	errNotTakenUp = errors.New("its recovery failed")
)

// Disk is a device that the kernel has.
type Disk struct {
	server   *Server
	device   blockdev.Device
	prompter blockdev.Prompt  // nil if device is none
	trimmer  blockdev.Trimmer // nil if device is none
	complain rate.Sometimes

	ctx      context.Context // of requests
	cancel   context.CancelCauseFunc
	starting context.Context // of requests until started
	started  atomic.Bool

	stopping sync.Mutex // one Stop at a time

	id      uint32
	request int // bytes of the longest
	char    int // file descriptor of /dev/ublkcN, -1 before open
	queues  []*queue
}

func newDisk(s *Server, device blockdev.Device) *Disk {
	d := &Disk{server: s, device: device, char: -1, complain: rate.Sometimes{First: 1, Interval: complainInterval}}
	d.prompter, _ = device.(blockdev.Prompt)
	d.trimmer, _ = device.(blockdev.Trimmer)
	d.ctx, d.cancel = context.WithCancelCause(context.Background())
	return d
}

func devicePath(id uint32) string { return fmt.Sprintf("/dev/ublkb%d", id) }

// Path is what clients open.
func (d *Disk) Path() string { return devicePath(d.id) }

// Number is N in /dev/ublkbN.
func (d *Disk) Number() int { return int(d.id) }

func (d *Disk) requestContext() context.Context {
	if d.started.Load() {
		return d.ctx
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
	i, err := d.server.control.info(id)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return d.create(ctx, id)
	case err != nil:
		return fmt.Errorf("%s: %w", devicePath(id), err)
	case i.owner != d.server.cfg.Owner:
		return d.create(ctx, newID)
	case i.state != stateDead:
		return d.takeUp(ctx, i)
	}
	if err := d.server.control.remove(ctx, id); err != nil {
		return err
	}
	return d.create(ctx, id)
}

// create makes a new disk; id may leave the choice to the kernel.
func (d *Disk) create(ctx context.Context, id uint32) error {
	d.prime(ctx)
	c := d.server.cfg
	i, err := d.server.control.add(info{
		id: id, queues: uint16(c.Queues), depth: uint16(c.Depth), request: uint32(c.Request),
		flags: featuresNeeded, owner: c.Owner,
	})
	if errors.Is(err, unix.EEXIST) && id != newID { // since it was looked for
		return d.create(ctx, newID)
	}
	if err != nil {
		return fmt.Errorf("make a device: %w", err)
	}
	d.server.claim(d, i.id, true)
	err = d.server.control.setParams(i.id, d.params(i))
	if err == nil {
		err = d.open(i)
	}
	if err == nil {
		err = d.order(ctx, ctrlStart)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", devicePath(i.id), err), d.undo(ctx))
	}
	d.started.Store(true)
	return nil
}

// prime reads what the kernel is going to look at while it starts the disk, and
// what it will not get in time fails at once: a server that is killed while the
// kernel waits inside of the start leaves a disk that nobody can take up or remove.
func (d *Disk) prime(ctx context.Context) {
	var stop context.CancelFunc
	d.starting, stop = context.WithTimeout(d.ctx, startTimeout)
	context.AfterFunc(d.starting, stop) // not sooner: others may read already while the start ends
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p := make([]byte, min(beginning, d.device.Geometry().Size))
	if err := d.device.ReadAt(ctx, p, 0); err != nil {
		d.server.cfg.Log.Warn("ublk: the beginning of a disk can't be read, and its partitions are not looked for", "error", err)
		stop()
	}
}

// takeUp goes on where the last server ended. All that can fail for want of
// something fails before the kernel is told: a recovery that breaks off can't be
// begun again.
func (d *Disk) takeUp(ctx context.Context, i info) error {
	d.started.Store(true)
	err := d.server.control.startRecovery(ctx, i.id)
	// The kernel refuses a recovery that was begun before: go on with that one.
	if err == nil || errors.Is(err, unix.EINVAL) {
		err = d.open(i)
	}
	if err == nil {
		err = d.order(ctx, ctrlEndRecovery)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("take up %s: %w: %w", devicePath(i.id), errNotTakenUp, err), d.undo(ctx))
	}
	return nil
}

// undo removes a disk that could not be started, unless the server is leaving: the
// next one sees to what it left.
func (d *Disk) undo(ctx context.Context) error {
	if d.ctx.Err() != nil {
		return nil
	}
	return d.destroy(ctx)
}

// startRecovery waits until the process that served a device before is gone.
func (c *control) startRecovery(ctx context.Context, id uint32) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	for {
		err := c.order(ctx, ctrlStartRecovery, id, 0)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-time.After(recoverPause):
		case <-ctx.Done():
			return fmt.Errorf("its last server still runs: %w", err)
		}
	}
}

// params describes the device to the kernel.
func (d *Disk) params(i info) params {
	g := d.device.Geometry()
	p := params{types: paramBasic}
	p.basic.attrs = attrVolatileCache | attrFUA
	if g.ReadOnly {
		p.basic.attrs |= attrReadOnly
	}
	p.basic.logicalShift, p.basic.physicalShift, p.basic.shift = shift(g.BlockSize), physicalShift, physicalShift
	p.basic.optShift = shift(cmp.Or(min(g.PreferredSize, int(i.request)), g.BlockSize))
	p.basic.maxSectors = i.request / sectorSize
	p.basic.sectors = uint64(g.Size / sectorSize)
	if d.trimmer != nil && !g.ReadOnly {
		p.types |= paramDiscard
		p.discard.granularity = uint32(g.BlockSize)
		p.discard.maxSectors, p.discard.maxZeroSectors, p.discard.maxSegments = rangeSectorsMax, rangeSectorsMax, 1
	}
	return p
}

func shift(n int) uint8 { return uint8(bits.Len(uint(n)) - 1) }

// open gives the disk's queues to threads, which ask the kernel for requests.
func (d *Disk) open(i info) error {
	d.request = int(i.request)
	char, err := unix.Open(fmt.Sprintf("/dev/ublkc%d", i.id), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError(fmt.Sprintf("open /dev/ublkc%d", i.id), err)
	}
	d.char = char
	for number := range int(i.queues) {
		q, err := openQueue(d, number, int(i.depth))
		if err != nil {
			return errors.Join(err, d.close())
		}
		d.queues = append(d.queues, q)
	}
	for _, q := range d.queues {
		d.server.place().adopt(q)
	}
	return nil
}

// order sends a command that ends when the queues have their threads, and names
// this process as their server.
func (d *Disk) order(ctx context.Context, command uint32) error {
	return d.server.control.order(ctx, command, d.id, os.Getpid())
}

// Stop removes the disk. One that is in use is not touched, which is
// content.ErrConflict, unless forced: then its users get errors. Requests in
// flight are answered first; when ctx ends before they are, they are cancelled.
// A disk that was stopped already is success.
func (d *Disk) Stop(ctx context.Context, force bool) error {
	d.stopping.Lock()
	defer d.stopping.Unlock()
	ctx, end, err := d.server.change(ctx, d)
	if err != nil {
		return err
	}
	defer end()
	if d.char >= 0 && !force {
		err = d.inUse()
	}
	if d.char >= 0 && err == nil {
		err = d.destroy(ctx)
	}
	if err == nil {
		d.server.forget(d)
	}
	return err
}

// destroy removes the disk from the kernel and lets go of it.
func (d *Disk) destroy(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, func() { d.cancel(errStopped) })
	defer unhook()
	patient, cancel := withGrace(ctx, cancelTimeout)
	defer cancel()
	if err := d.server.control.order(patient, ctrlStop, d.id, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("stop %s: %w", d.Path(), err)
	}
	for _, q := range d.queues {
		select {
		case <-q.ended:
		case <-patient.Done():
			return fmt.Errorf("stop %s: %w: requests are held by a device that does not return", d.Path(), content.ErrUnavailable)
		}
	}
	d.cancel(errStopped)
	if err := d.close(); err != nil {
		return err
	}
	if err := d.server.control.delete(patient, d.id); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", d.Path(), err)
	}
	return nil
}

// delete removes a stopped device. It returns when its number is free, or after
// deleteTimeout: the kernel frees it when who still has the disk open lets go.
func (c *control) delete(ctx context.Context, id uint32) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	err := c.order(ctx, ctrlDelete, id, 0)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// withGrace is a context that ends a while after ctx.
func withGrace(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return later, func() { unhook(); cancel() }
}

// close lets go of the kernel's part; the threads must have let go of the queues.
func (d *Disk) close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.close())
	}
	if d.char >= 0 {
		errs = append(errs, unix.Close(d.char))
	}
	d.queues, d.char = nil, -1
	return errors.Join(errs...)
}

// remove stops and deletes a device that this process does not serve.
func (c *control) remove(ctx context.Context, id uint32) error {
	err := c.order(ctx, ctrlStop, id, 0)
	if err == nil {
		err = c.delete(ctx, id)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", devicePath(id), err)
	}
	return nil
}
