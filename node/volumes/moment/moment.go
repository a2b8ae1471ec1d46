// Package moment is what a volume was at a place of its journal: a snapshot, or the end.
// Moments are read, compared, written to files, and made into images.
package moment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Moment is a disk as it was at a place of its journal. It does not change.
type Moment struct {
	Vol  *volume.Volume
	At   content.Position
	Size int64
	// Folded says what is under the journal behind Base.
	catalog.Folded
	// Whole says that it is all that Vol has, which nobody writes.
	Whole bool
	// Close gives back what keeps it.
	Close func() error
}

// Of is a place of a volume that is written, which was kept, with what its record says to be
// under it then: both are until Close. ErrUnavailable is for a while.
func Of(vol *volume.Volume, at content.Position, record func() catalog.Volume) (Moment, error) {
	for range records.Tries {
		now := record()
		if now.Base.Seq > at.Seq || vol.Keep(now.Base) != nil { // a fold goes on meanwhile
			continue
		}
		return Moment{Vol: vol, At: at, Size: now.Size, Folded: now.Folded, Close: func() error {
			vol.Release(now.Base)
			vol.Release(at)
			return nil
		}}, nil
	}
	vol.Release(at)
	return Moment{}, fmt.Errorf("%w: it is being folded; try again", content.ErrUnavailable)
}

// Still is a volume that nobody writes while it is open, which who opened it closes.
func Still(vol *volume.Volume, now catalog.Volume) Moment {
	return Moment{vol, vol.End(), now.Size, now.Folded, true, func() error { return nil }}
}

// Read fills p from off.
func (m Moment) Read(ctx context.Context, p []byte, off int64) error {
	if m.Whole {
		return m.Vol.ReadAt(ctx, p, off)
	}
	return m.Vol.ReadAsOf(ctx, p, off, m.At)
}

// Padded is Read, with zeros past the end.
func (m Moment) Padded(ctx context.Context, p []byte, off int64) error {
	n := min(max(m.Size-off, 0), int64(len(p)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return m.Read(ctx, p[:n], off)
}

// Config says how moments of the bucket are opened.
type Config struct {
	// Dir takes their folders.
	Dir string
	// Origin returns the bucket; nil is for who has none.
	Origin func() (bucket.Bucket, error)
	// Root makes a root readable.
	Root func(ctx context.Context, head pack.Head, lineage []content.CID) (volume.Source, error)
	Log  *slog.Logger
}

// Bucket returns the bucket, for what others have put there.
func (cfg Config) Bucket() (bucket.Bucket, error) {
	if cfg.Origin == nil {
		return nil, fmt.Errorf("%w: this node has no origin to read from", content.ErrUnavailable)
	}
	return cfg.Origin()
}

// Nodes reads nodes of maps there.
func (cfg Config) Nodes() (fold.Nodes, error) {
	store, err := cfg.Bucket()
	if err != nil {
		return nil, err
	}
	return pack.NewReader(store).ReadNode, nil
}

// Stored are segments there that a record names, and those behind them.
func (cfg Config) Stored(ctx context.Context, refs []content.SegmentRef, tails []journal.AdoptedSegment) []journal.AdoptedSegment {
	return append(fold.InBucket(ctx, cfg.Bucket, refs), tails...)
}

// Open opens what the bucket has of a snapshot, in a folder of its own. The caller closes it.
func (cfg Config) Open(ctx context.Context, body catalog.Snapshot) (m Moment, err error) {
	segments := cfg.Stored(ctx, body.Segments, nil)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return m, err
	}
	dir, err := os.MkdirTemp(cfg.Dir, "")
	if err != nil {
		return m, err
	}
	gone := func() error { return os.RemoveAll(dir) }
	folder := filepath.Join(dir, body.ID.String())
	if err = volume.Create(folder, body.ID); err == nil {
		err = journal.Adopt(folder, body.ID, segments, func(string) {})
	}
	if err != nil {
		return m, errors.Join(err, gone())
	}
	if m, err = cfg.OpenFolder(ctx, body, journal.Ancestors(segments, body.ID), folder); err != nil {
		return m, errors.Join(err, gone())
	}
	closed := m.Close
	m.Close = func() error { return errors.Join(closed(), gone()) }
	return m, nil
}

// OpenFolder opens a volume's folder, which begins with segments of its ancestors, to be
// read: all that it has.
func (cfg Config) OpenFolder(ctx context.Context, body catalog.Snapshot, ancestors []content.VolumeID, dir string) (Moment, error) {
	c := volume.Config{Dir: dir, ID: body.ID, Size: body.Size, Epoch: body.Epoch, Ancestors: ancestors, Base: body.Base, Kept: []content.Position{body.At}, ReadOnly: body.Orphan, Log: cfg.Log}
	if body.Head != nil {
		src, err := cfg.Root(ctx, *body.Head, body.Lineage)
		if err != nil {
			return Moment{}, err
		}
		c.Source, c.SourceSize, c.ChunkSize = src, body.Head.Root.Size, body.Head.Root.ChunkSize
	}
	vol, err := volume.Open(c)
	if err != nil {
		return Moment{}, err
	}
	return Moment{vol, body.At, body.Size, body.Folded, true, vol.Close}, nil
}

// Export writes the disk to a file, which is empty: holes and zeros stay holes. What was
// written is synced when it returns. progress may be nil.
func (m Moment) Export(ctx context.Context, f *os.File, progress func(done, total int64)) error {
	if err := f.Truncate(m.Size); err != nil {
		return err
	}
	p := make([]byte, Piece)
	for off := int64(0); off < m.Size; {
		n := min(m.Size-off, Piece)
		if err := m.Read(ctx, p[:n], off); err != nil {
			return err
		}
		for part := int64(0); part < n; part += content.ChunkSizeMin {
			b := p[part:min(part+content.ChunkSizeMin, n)]
			if content.IsZero(b) {
				continue
			}
			if _, err := f.WriteAt(b, off+part); err != nil {
				return err
			}
		}
		if off += n; progress != nil {
			progress(off, m.Size)
		}
	}
	return f.Sync()
}

// End is where the journal in a folder ends, which nobody writes any more.
func End(c volume.Config) (content.Position, error) {
	c.ReadOnly = true
	vol, err := volume.Open(c)
	if err != nil {
		return content.Position{}, err
	}
	return vol.End(), vol.Close()
}
