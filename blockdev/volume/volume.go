package volume

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/content/scratch"
)

// Source reads the chunks of an immutable root. Holes read as zeros.
type Source interface {
	// TryReadChunk fills p from byte off of a chunk if that needs no wait; it does
	// not allocate. false means to use ReadChunk.
	TryReadChunk(index uint64, off int, p []byte) bool
	// ReadChunk fills p from byte off of a chunk, wherever that comes from.
	ReadChunk(ctx context.Context, index uint64, off int, p []byte) error
	// NextData returns the first run of chunks from index on that are not holes;
	// io.EOF when there is none.
	NextData(ctx context.Context, index uint64) (start, end uint64, err error)
}

// Config says which volume to open.
type Config struct {
	// Dir is the volume's own folder, which Create has made.
	Dir string
	// ID and Epoch go into the journal; Size is the disk's, in bytes.
	ID    [16]byte
	Epoch uint64
	Size  int64
	// Source is what lies under the journal; nil is a blank disk.
	Source Source
	// SourceSize and ChunkSize describe the source, in bytes. Behind SourceSize the
	// disk is blank.
	SourceSize int64
	ChunkSize  int
	// SegmentSize is the size at which a segment of the journal is closed; segmentMax
	// when 0.
	SegmentSize int64
	// ReadOnly refuses writes and leaves the files as they are; a damaged journal
	// can be opened only so.
	ReadOnly bool
	// Log may be nil.
	Log *slog.Logger
}

// Volume is an open disk. Safe for concurrent use.
type Volume struct {
	cfg     Config
	lock    io.Closer
	buffers scratch.Pool

	waiting atomic.Int32 // changes that wait for mu

	mu       sync.RWMutex // guards what follows; readers hold it while they read the journal
	chain    []*segment   // the journal, by number; the last one is open
	slots    []*segment   // the same where extents find them; nil is free
	through  uint64       // no segment is numbered so low any more, but for those of chain
	extents  extentMap
	data     bytes.Reader // of the write that is being made
	seq      uint64       // of the last entry
	written  uint64       // of the last entry that is not a mark
	durable  uint64       // known to be synced
	told     uint64       // what of that the journal itself says
	newNames bool         // segments were made since the folder was synced
	failed   error        // a failed write or sync: no more of either
	noSpace  bool         // the last write found the disk full
	settled  bool         // what was replayed is durable
	closed   bool

	tidying atomic.Bool    // a tidy is due that has not looked yet
	work    sync.WaitGroup // what goes on beside
	syncing sync.Mutex     // one sync at a time; those who wait share the next
	notes   keeper         // guarded by syncing
}

var _ blockdev.Device = (*Volume)(nil)

// Open opens a volume and replays its journal. One whose journal is damaged fails
// with a *CorruptError unless it is opened read-only: then only reads of what is
// lost fail. A folder that another process has open is ErrConflict: one that was killed
// has it until its last thread has ended, and with it the write that this was at, so that
// none lands behind a newer one. The caller closes it.
func Open(cfg Config) (*Volume, error) {
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	cfg.SegmentSize = cmp.Or(cfg.SegmentSize, segmentMax)
	v := &Volume{cfg: cfg}
	if cfg.Size <= 0 || cfg.Size > content.SizeMax || cfg.Size%sectorSize != 0 {
		return nil, fmt.Errorf("open volume of %d bytes: %w: want a multiple of %d up to %d", cfg.Size, content.ErrInvalid, sectorSize, int64(content.SizeMax))
	}
	if _, err := os.Stat(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open volume: %w: %w", content.ErrNotFound, err)
	}
	var err error
	if v.lock, err = durable.Lock(filepath.Join(cfg.Dir, "lock")); err != nil {
		return nil, fmt.Errorf("open volume %s: %w", cfg.Dir, err)
	}
	lost, err := v.replay()
	if err == nil && len(lost) > 0 && !cfg.ReadOnly {
		err = lost[0]
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", cfg.Dir, err), v.Close())
	}
	for _, c := range lost {
		cfg.Log.Error("a part of the volume is lost", "why", c)
	}
	if err := v.secure(); err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", cfg.Dir, err), v.Close())
	}
	if !cfg.ReadOnly {
		v.tidy()
	}
	return v, nil
}

// secure syncs what was replayed: it may have been in the kernel's memory only, and
// new entries are going to rest on it.
func (v *Volume) secure() error {
	if err := v.sync(v.due().segments, true); err != nil {
		return err
	}
	v.settle(v.chain)
	if n := len(v.chain); n > 0 {
		v.chain[n-1].synced = false
	}
	v.written, v.durable = v.seq, v.seq
	v.note(v.end())
	v.settled = true
	return nil
}

func (v *Volume) forget() error {
	var errs []error
	for _, s := range v.chain {
		errs = append(errs, s.file.Close())
	}
	v.chain, v.slots, v.extents = nil, nil, extentMap{}
	return errors.Join(errs...)
}

// Close marks the end of the journal, syncs it and closes the files. Calls after
// it fail with ErrClosed.
func (v *Volume) Close() error {
	defer v.work.Wait() // after the locks are free
	v.syncing.Lock()    // a Flush has the files in hand
	defer v.syncing.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil
	}
	var err error
	if len(v.chain) > 0 && v.failed == nil && v.settled && !v.cfg.ReadOnly {
		err = v.finish()
	}
	v.closed = true
	return errors.Join(err, v.notes.close(), v.forget(), v.lock.Close())
}

// finish syncs the journal and marks its end, unless that takes another segment. Called
// with mu.
func (v *Volume) finish() error {
	if err := v.sync(v.due().segments, true); err != nil {
		return err
	}
	if v.durable = v.written; !v.full() {
		v.mark()
		if err := v.sync(v.chain[len(v.chain)-1:], false); err != nil {
			return err
		}
	}
	v.note(v.end())
	return nil
}

// Geometry implements blockdev.Device.
func (v *Volume) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: v.cfg.Size, BlockSize: sectorSize, PreferredSize: unit, ReadOnly: v.cfg.ReadOnly}
}

// Stats is how a volume stands.
type Stats struct {
	// Dirty is how much of the disk lies in the journal only, and Disk what the journal
	// takes, in bytes.
	Dirty, Disk int64
	// Full says that the last write found no room.
	Full bool
	// Failed is why the volume takes no more writes, nil if it does.
	Failed error
}

// Stats returns how the volume stands.
func (v *Volume) Stats() Stats {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := Stats{Dirty: v.extents.dirty * sectorSize, Full: v.noSpace, Failed: v.failed}
	for _, x := range v.chain {
		s.Disk += x.size
	}
	return s
}
