// Package root reads what lies under the journal of a volume: an immutable root, whose
// chunks come from a Source. It decides nothing, and keeps nothing.
package root

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev"
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

// Root is a source as a disk. Behind its size, in bytes, or without a source, all is zeros.
type Root struct {
	Source    Source
	Size      int64
	ChunkSize int
}

// Piece is a part of a read: what to fill, from which byte of the disk.
type Piece struct {
	P   []byte
	Off int64
}

// parallelReads is how many chunks one read waits for at once.
const parallelReads = 16

// Try fills p from off of the disk, if that needs no wait; it does not allocate.
func (r *Root) Try(p []byte, off int64) bool {
	for len(p) > 0 {
		if r.Source == nil || off >= r.Size {
			clear(p)
			return true
		}
		index, at, n := r.chunk(off, len(p))
		if !r.Source.TryReadChunk(index, at, p[:n]) {
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

// chunk says in which chunk of the source off lies, where, and how many bytes of
// length it has.
func (r *Root) chunk(off int64, length int) (index uint64, at, n int) {
	size := int64(r.ChunkSize)
	at = int(off % size)
	return uint64(off / size), at, min(length, r.ChunkSize-at, int(min(r.Size-off, int64(length))))
}

// Read fills all pieces, several chunks at a time.
func (r *Root) Read(ctx context.Context, pieces []Piece) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelReads)
	for _, m := range pieces {
		for p, off := m.P, m.Off; len(p) > 0; {
			if r.Source == nil || off >= r.Size {
				clear(p)
				break
			}
			index, at, n := r.chunk(off, len(p))
			part := p[:n]
			if !r.Source.TryReadChunk(index, at, part) {
				group.Go(func() error { return r.Source.ReadChunk(ctx, index, at, part) })
			}
			p, off = p[n:], off+int64(n)
		}
	}
	return group.Wait()
}

// Extents tells holes of the root from its data, and gives add one range after the other;
// more is false when add has no room for another.
func (r *Root) Extents(ctx context.Context, off, length int64, add func(int64, blockdev.State) bool) (more bool, err error) {
	end := off + length
	size := int64(r.ChunkSize)
	for off < end {
		if r.Source == nil || off >= r.Size {
			return add(end-off, blockdev.Hole), nil
		}
		start, stop, err := r.Source.NextData(ctx, uint64(off/size))
		if errors.Is(err, io.EOF) {
			return add(end-off, blockdev.Hole), nil
		}
		if err != nil {
			return false, err
		}
		if hole := min(int64(start)*size, end); hole > off {
			if !add(hole-off, blockdev.Hole) {
				return false, nil
			}
			off = hole
			continue
		}
		data := min(int64(stop)*size, end)
		if !add(data-off, blockdev.Data) {
			return false, nil
		}
		off = data
	}
	return true, nil
}
