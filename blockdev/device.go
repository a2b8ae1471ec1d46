// Package blockdev says what a block device is: what the doors (NBD, ublk) ask
// and what a volume answers. The doors and the volume import it and never each
// other.
package blockdev

import (
	"bytes"
	"context"
	"io"
	"iter"
)

// Geometry describes a device. It does not change while the device is served,
// except that Size may grow: whoever asks next is told.
type Geometry struct {
	// Size in bytes, a multiple of BlockSize.
	Size int64
	// BlockSize is the smallest unit of I/O the device accepts: 512 or 4096.
	BlockSize int
	// PreferredSize is the unit that is cheapest to read, in bytes.
	PreferredSize int
	// ReadOnly devices answer each write, discard and zeroing with
	// content.ErrReadOnly.
	ReadOnly bool
}

// Device is a block device. Offsets and lengths are multiples of BlockSize and
// lie inside Size: the doors check that before they call. All methods are safe
// for concurrent use; the result of overlapping concurrent writes is one of
// them, block by block. A slice is not kept after the call returns, nor what gives
// the data of a write.
type Device interface {
	Geometry() Geometry
	// ReadAt fills p from off. It blocks until a source has the bytes, and fails
	// with content.ErrUnavailable when none will.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// TryReadAt fills p and returns true if that needs no wait, or returns false at
	// once: then p holds anything and the caller uses ReadAt. No Try allocates.
	TryReadAt(p []byte, off int64) bool
	// TryReadTo is TryReadAt for who has no memory of its own for the data: it gives w
	// the n bytes at off, piece by piece, the first at 0. An error of w is false.
	TryReadTo(w io.WriterAt, n int, off int64) bool
	// WriteAt stores p at off. With fua it is durable, by the device's policy,
	// when it returns; otherwise after the next Flush that begins later.
	// With content.ErrNoSpace a prefix of it may be stored.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// TryWriteFrom writes n bytes at off, which it takes from data once, if that
	// needs no wait; false means nothing was written and the caller uses WriteAt. An
	// error of data is false.
	TryWriteFrom(data io.ReaderAt, n int, off int64) bool
	// Zero has a range read as zeros. With keep it is no hole: its space stays its own.
	Zero(ctx context.Context, off, length int64, keep, fua bool) error
	// Flush makes each write that returned before the call durable by the
	// device's policy. After a failed Flush the device takes no more writes.
	Flush(ctx context.Context) error
	// Extents appends to dst what lies at off, for up to length bytes and limit
	// extents: adjacent ones differ, and they cover a prefix of the range that
	// is not empty.
	Extents(ctx context.Context, dst []Extent, off, length int64, limit int) ([]Extent, error)
}

// Extent is a range of a device, and what it has.
type Extent struct {
	Length int64
	State  State
}

// State is what a range has.
type State uint8

const (
	Data  State = iota
	Zeros       // reads as zeros, and keeps its space
	Hole        // reads as zeros, without storage
)

// Write is one of a batch: data to be at an offset.
type Write struct {
	Data   []byte
	Offset int64
}

// BatchWriter is a Device to which writes that came together are dearer one by one.
type BatchWriter interface {
	// TryWriteBatch makes the first of ws that need no wait, each as TryWriteFrom
	// would, and returns how many; WriteAt is for the others. Among those that overlap
	// the last one wins. It keeps nothing of ws.
	TryWriteBatch(ws []Write) int
}

// TryWriteBatch is d's, or what comes to the same.
func TryWriteBatch(d Device, ws []Write) int {
	if b, ok := d.(BatchWriter); ok {
		return b.TryWriteBatch(ws)
	}
	var r bytes.Reader
	for i, w := range ws {
		if r.Reset(w.Data); !d.TryWriteFrom(&r, len(w.Data), w.Offset) {
			return i
		}
	}
	return len(ws)
}

// Range is a part of a device, in bytes.
type Range struct {
	Offset, Length int64
}

// History is a Device that knows what was written to it since its snapshots, so that a
// backup reads that alone.
type History interface {
	// Snapshots returns the numbers of those that Changes knows, ascending.
	Snapshots(ctx context.Context) ([]uint64, error)
	// Changes yields, ascending and apart from each other, the ranges of the length
	// bytes at off of which some may differ from what they were at a snapshot.
	// content.ErrNotFound: it knows no such snapshot.
	Changes(ctx context.Context, from uint64, off, length int64) iter.Seq2[Range, error]
}
