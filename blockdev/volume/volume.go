package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

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
	// Dir is the volume's own folder.
	Dir string
	// Source is what lies under the journal; nil is a blank disk.
	Source Source
	// SourceSize and ChunkSize describe the source, in bytes. Behind SourceSize the
	// disk is blank.
	SourceSize int64
	ChunkSize  int
	// ReadOnly refuses writes and leaves the files as they are; a damaged journal
	// can be opened only so.
	ReadOnly bool
	// Log may be nil.
	Log *slog.Logger
}

// Meta is what a volume's folder says of it.
type Meta struct {
	Magic   string    `json:"magic"`
	ID      [16]byte  `json:"id"`
	Size    int64     `json:"size"`
	Epoch   uint64    `json:"epoch"`
	Created time.Time `json:"created"`
}

const (
	metaMagic = "grange-volume-folder/1"
	metaName  = "volume.json"
)

// Volume is an open disk. Safe for concurrent use.
type Volume struct {
	cfg     Config
	meta    Meta
	lock    io.Closer
	buffers scratch.Pool

	waiting atomic.Int32 // changes that wait for mu

	mu       sync.RWMutex // guards what follows; readers hold it while they read the journal
	segments []*segment
	extents  extentMap
	seq      uint64 // of the last entry
	written  uint64 // of the last entry that is not a mark
	durable  uint64 // known to be synced
	told     uint64 // what of that the journal itself says
	synced   int    // segments before this one are synced whole
	newNames bool   // segments were made since the folder was synced
	failed   error  // a failed write or sync: no more of either
	settled  bool   // what was replayed is durable
	closed   bool

	syncing sync.Mutex // one sync at a time; those who wait share the next
	notes   keeper     // guarded by syncing
}

var (
	_ blockdev.Device  = (*Volume)(nil)
	_ blockdev.Prompt  = (*Volume)(nil)
	_ blockdev.Direct  = (*Volume)(nil)
	_ blockdev.Trimmer = (*Volume)(nil)
	_ blockdev.Mapper  = (*Volume)(nil)
)

// Create makes the folder of a new volume, whole or not at all.
func Create(dir string, meta Meta) error {
	if meta.Size <= 0 || meta.Size > content.SizeMax || meta.Size%sectorSize != 0 {
		return fmt.Errorf("create volume of %d bytes: %w: want a multiple of %d up to %d", meta.Size, content.ErrInvalid, sectorSize, int64(content.SizeMax))
	}
	if _, err := os.Stat(dir); err == nil {
		return fmt.Errorf("create volume in %s: %w", dir, content.ErrExists)
	}
	meta.Magic = metaMagic
	b, err := json.MarshalIndent(meta, "", " ")
	if err != nil {
		return err
	}
	tmp := dir + ".new"
	err = os.RemoveAll(tmp)
	if err == nil {
		err = os.MkdirAll(tmp, 0o700)
	}
	if err == nil {
		err = durable.WriteFile(filepath.Join(tmp, metaName), append(b, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err == nil {
		err = durable.SyncDir(filepath.Dir(dir))
	}
	if err != nil {
		return fmt.Errorf("create volume: %w", spaceError(err))
	}
	return nil
}

// Open opens a volume and replays its journal. One whose journal is damaged fails
// with a *CorruptError unless it is opened read-only: then only reads of what is
// lost fail. A folder that another process has open is ErrConflict. The caller
// closes it.
func Open(cfg Config) (*Volume, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	v := &Volume{cfg: cfg}
	b, err := os.ReadFile(filepath.Join(cfg.Dir, metaName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open volume %s: %w", cfg.Dir, content.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	if err := json.Unmarshal(b, &v.meta); err != nil || v.meta.Magic != metaMagic || v.meta.Size <= 0 {
		return nil, fmt.Errorf("open volume %s: %s: %w", cfg.Dir, metaName, errors.Join(content.ErrCorrupt, err))
	}
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
	if err := v.settle(); err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", cfg.Dir, err), v.Close())
	}
	return v, nil
}

// settle syncs what was replayed: it may have been in the kernel's memory only,
// and new entries are going to rest on it.
func (v *Volume) settle() error {
	for _, s := range v.segments {
		if err := s.file.Sync(); err != nil {
			return err
		}
	}
	v.written, v.durable, v.synced = v.seq, v.seq, max(len(v.segments)-1, 0)
	if err := durable.SyncDir(v.cfg.Dir); err != nil {
		return err
	}
	v.note(v.end())
	v.settled = true
	return nil
}

// Close marks the end of the journal, syncs it and closes the files. Calls after
// it fail with ErrClosed.
func (v *Volume) Close() error {
	v.syncing.Lock() // a Flush has the files in hand
	defer v.syncing.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	var errs []error
	if n := len(v.segments); n > 0 && v.failed == nil && v.settled && !v.cfg.ReadOnly {
		s := v.segments[n-1]
		for _, s := range v.segments[min(v.synced, n):] {
			errs = append(errs, s.file.Sync())
		}
		errs = append(errs, durable.SyncDir(v.cfg.Dir))
		if v.told < v.written {
			mark := entry{kind: kindMark, seq: v.seq + 1, durable: v.written}.encode(nil)
			if _, err := s.file.WriteAt(mark, s.size); err == nil {
				v.seq, s.size = v.seq+1, s.size+int64(len(mark))
				errs = append(errs, s.file.Sync())
			}
		}
		if errors.Join(errs...) == nil {
			v.note(v.end())
		}
	}
	errs = append(errs, v.notes.close())
	for _, s := range v.segments {
		errs = append(errs, s.file.Close())
	}
	return errors.Join(append(errs, v.lock.Close())...)
}

// Meta returns what the folder says of the volume.
func (v *Volume) Meta() Meta { return v.meta }

// Geometry implements blockdev.Device.
func (v *Volume) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: v.meta.Size, BlockSize: sectorSize, PreferredSize: unit, ReadOnly: v.cfg.ReadOnly}
}

// DirtyBytes is how much of the disk lies in the journal only.
func (v *Volume) DirtyBytes() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.extents.dirty * sectorSize
}
