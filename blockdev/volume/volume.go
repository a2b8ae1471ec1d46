package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/blockdev/volume/root"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/content/scratch"
)

// Source reads the chunks of an immutable root.
type Source = root.Source

// Config says which volume to open.
type Config struct {
	// Dir is the volume's own folder, which Create has made.
	Dir string
	// ID and Epoch go into the journal, in which another epoch begins another segment;
	// Size is the disk's, in bytes.
	ID    content.VolumeID
	Epoch uint64
	Size  int64
	// Ancestors are other volumes whose segments the journal may begin with.
	Ancestors []content.VolumeID
	// Source is what lies under the journal; nil is a blank disk.
	Source Source
	// SourceSize and ChunkSize describe the source, in bytes. Behind SourceSize the
	// disk is blank. ChunkSize is content.ChunkSizeDefault when 0.
	SourceSize int64
	ChunkSize  int
	// Base is the position up to which Source has everything. Segments up to there are
	// removed.
	Base content.Position
	// Kept are positions that snapshots name, as if Keep were called for each. One that
	// the journal does not have is left out.
	Kept []content.Position
	// Persist makes what a Flush is about to acknowledge durable elsewhere too: it returns once
	// all up to a position is. It is asked one call at a time, for what is durable here; Flush
	// fails with its error, and asks again with the next. nil has all durable that is here.
	Persist func(ctx context.Context, upTo content.Position) error
	// Followed says that others read the journal: it is not made smaller before Held says up
	// to where they have it.
	Followed bool
	// Advanced is told each time that more of the journal is durable here, and waits for
	// nobody: else followers learn of what no flush asked for when they look. May be nil.
	Advanced func()
	// Free says which share of the disk under Dir is free, from 0 to 1; nil always has
	// enough. Below a tenth writes slow down, and below a twentieth they fail.
	Free func() float64
	// SegmentSize is the size at which a segment of the journal is closed; segmentMax
	// when 0. The journal takes up to four of them beside twice what lives in it.
	SegmentSize int64
	// Memory bounds what the map of a volume takes in memory, in bytes; memoryMax when 0.
	Memory int64
	// ReadOnly refuses writes and leaves the files as they are; a damaged journal
	// can be opened only so.
	ReadOnly bool
	// Log may be nil.
	Log *slog.Logger
	// Step is told by what is done in steps, at each; for tests, which end the process there.
	Step func(name string)
}

// Volume is an open disk. Safe for concurrent use.
//
// Locks are taken in the order of the fields here. Readers take but mu, under which nobody
// waits for the disk.
type Volume struct {
	cfg     Config
	lock    io.Closer
	buffers scratch.Pool
	changes sync.Pool
	work    sync.WaitGroup // what goes on beside

	persisting sync.Mutex
	persisted  uint64 // seq; guarded by persisting
	trusted    uint64 // doubts before that; guarded by persisting
	doubts     atomic.Uint64

	tending sync.Mutex     // one change of frozen layers and sealed segments at a time
	syncing sync.Mutex     // one sync at a time; those who wait share the next
	notes   journal.Keeper // guarded by syncing
	turns   turns          // of those who append
	batch   []*change      // the turn's own
	vector  [][]byte       // the turn's own

	mu       sync.RWMutex // guards what follows; seq, number, tail and open change with the turn too
	view                  // of the frozen layers
	open     *layer
	chain    []*segment // the journal, by number
	tail     *segment   // the last one, while it is open
	vacant   []uint32   // slots that nobody looks into
	number   uint64     // of the last segment that there was
	seq      uint64     // of the last entry
	size     int64      // of the disk
	kept     map[content.Position]int
	written  uint64 // seq of the last entry that is not a mark
	durable  uint64 // known to be synced
	told     uint64 // what of that the journal itself says
	newNames bool   // segments were made since the folder was synced
	failed   error  // a failed write or sync: no more of either
	noSpace  bool   // the last write found the disk full
	settled  bool   // what was replayed is durable
	closed   bool
	eased    chan struct{} // closed when pressure.behind ends

	spares   journal.Spares
	pressure pressure
	held     atomic.Uint64 // seq up to which readers of the journal have it
	tended   atomic.Bool   // somebody is about to tend the journal, and has not looked yet
}

var _ blockdev.Device = (*Volume)(nil)

// Create makes the folder of a volume that nothing was written to yet. It is not durable
// before the caller has synced it, and its name. It has a note from then on, so that a journal which is gone never looks like
// one that has not begun.
func Create(dir string, id [16]byte) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return journal.WriteFirst(dir, id, journal.Note{})
}

// Open opens a volume and replays its journal. One whose journal is damaged fails
// with a *CorruptError unless it is opened read-only: then only reads of what is
// lost fail. A folder that another process has open is ErrConflict: one that was killed
// has it until its last thread has ended, and with it the write that this was at, so that
// none lands behind a newer one. The caller closes it.
func Open(cfg Config) (*Volume, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.SegmentSize = cmp.Or(cfg.SegmentSize, segmentMax)
	cfg.Memory = cmp.Or(cfg.Memory, memoryMax)
	cfg.ChunkSize = cmp.Or(cfg.ChunkSize, content.ChunkSizeDefault)
	if cfg.Advanced == nil {
		cfg.Advanced = func() {}
	}
	if cfg.Step == nil {
		cfg.Step = func(string) {}
	}
	v := &Volume{cfg: cfg, size: cfg.Size, kept: map[content.Position]int{}, eased: make(chan struct{})}
	v.ground = &ground{Root: root.Root{Source: cfg.Source, Size: cfg.SourceSize, ChunkSize: cfg.ChunkSize}, base: cfg.Base}
	v.readers, v.spares.Dir = newReaders(nil), cfg.Dir
	if !cfg.Followed {
		v.held.Store(math.MaxUint64)
	}
	v.open, v.number, v.seq = newLayer(cfg.Base), cfg.Base.Number, cfg.Base.Seq
	for _, p := range cfg.Kept {
		v.kept[p]++
	}
	if cfg.Size <= 0 || cfg.Size > content.SizeMax || cfg.Size%extents.SectorSize != 0 {
		return nil, fmt.Errorf("open volume of %d bytes: %w: want a multiple of %d up to %d", cfg.Size, content.ErrInvalid, extents.SectorSize, int64(content.SizeMax))
	}
	if _, err := os.Stat(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open volume: %w: %w", content.ErrNotFound, err)
	}
	var err error
	if v.lock, err = durable.Lock(filepath.Join(cfg.Dir, "lock")); err != nil {
		return nil, fmt.Errorf("open volume %s: %w", cfg.Dir, err)
	}
	lost, err := v.replay()
	switch {
	case err != nil:
	case len(lost) > 0 && !cfg.ReadOnly:
		err = lost[0]
	default:
		for _, c := range lost {
			cfg.Log.Error("a part of the volume is lost", "why", c)
		}
		err = v.secure()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", cfg.Dir, err), v.Close())
	}
	if cfg.ReadOnly { // its end is a place like one that is kept
		v.freezeAt(v.position())
	} else {
		v.tend()
	}
	return v, nil
}

// secure syncs what was replayed: it may have been in the kernel's memory only, and
// new entries are going to rest on it.
func (v *Volume) secure() error {
	due, noted := v.due(), v.notes.Last
	for _, s := range due.segments {
		from := int64(0)
		if s.Number == noted.Number {
			from = noted.Length
		}
		if v.cfg.ReadOnly || s.Number < noted.Number {
			continue
		}
		if err := journal.Rewrite(s.file, from, s.size); err != nil {
			return err
		}
	}
	if err := v.sync(due.segments, true); err != nil {
		return err
	}
	v.settle(due)
	v.written, v.durable = v.seq, v.seq
	v.note(v.end())
	v.settled = true
	return nil
}

// forget closes all files.
func (v *Volume) forget() error {
	var errs []error
	for _, s := range v.chain {
		errs = append(errs, s.file.Close())
	}
	for _, l := range v.layers {
		errs = append(errs, l.drop())
	}
	v.chain, v.tail, v.layers, v.slots, v.open = nil, nil, nil, nil, newLayer(v.cfg.Base)
	return errors.Join(errs...)
}

// Close marks the end of the journal, syncs it and closes the files. Calls after
// it fail with ErrClosed.
func (v *Volume) Close() error {
	lock, err := v.close()
	v.work.Wait() // what goes on beside is at the folder until it has ended by that
	if lock == nil {
		return err
	}
	return errors.Join(err, lock.Close())
}

// close is Close but for the folder's lock, which it returns the first time.
func (v *Volume) close() (lock io.Closer, err error) {
	v.tending.Lock()
	defer v.tending.Unlock()
	v.syncing.Lock() // a Flush has the files in hand
	defer v.syncing.Unlock()
	v.take()
	defer v.turns.pass()
	if v.closed {
		return nil, nil
	}
	if len(v.chain) > 0 && v.failed == nil && v.settled && !v.cfg.ReadOnly {
		err = v.finish()
	}
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.readers.drain()
	_, left := v.spares.Shed(0)
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lock, errors.Join(err, left, v.notes.Close(), v.forget())
}

// finish syncs the journal and marks its end, unless that takes another segment. Called
// with syncing and the turn.
func (v *Volume) finish() error {
	if v.tail.spare() > 0 {
		v.cutBack(v.tail, v.tail.size)
	}
	due := v.due()
	err := v.sync(due.segments, true)
	if err != nil {
		return err
	}
	v.carried(due)
	if v.mark(); v.tail != nil {
		err = v.sync([]*segment{v.tail}, false)
	}
	if err == nil {
		v.note(v.end())
	}
	return err
}

func (v *Volume) Geometry() blockdev.Geometry {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return blockdev.Geometry{Size: v.size, BlockSize: extents.SectorSize, PreferredSize: extents.Unit, ReadOnly: v.cfg.ReadOnly}
}

// Stats is how a volume stands.
type Stats struct {
	// Dirty is how much of the disk lies in the journal only, in bytes; what was written
	// again since the last Seal counts twice. Disk is what the journal takes, with the files
	// that it keeps for what comes, and Open what is not sealed.
	Dirty, Disk, Open int64
	// Full says that the last write found no room.
	Full bool
	// Failed is why the volume takes no more writes, nil if it does.
	Failed error
}

// Stats returns how the volume stands.
func (v *Volume) Stats() Stats {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := Stats{Dirty: v.open.usage().Dirty * extents.SectorSize, Full: v.noSpace, Failed: v.failed}
	for _, l := range v.layers {
		s.Dirty += l.usage().Dirty * extents.SectorSize
	}
	for _, x := range v.chain {
		s.Disk += x.size
	}
	if s.Disk += v.tail.spare() + v.spares.Bytes(); v.tail != nil {
		s.Open = v.tail.size
	}
	return s
}
