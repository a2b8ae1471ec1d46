package doors

import (
	"context"
	"iter"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/node/volumes/terms"
)

// Past knows the snapshots of volumes, and what was written since.
type Past struct {
	// Snapshots returns those of a volume.
	Snapshots func(ctx context.Context, volume string) ([]terms.SnapshotView, error)
	// Changes yields the ranges in which two differ, by offset; with to 0 the second is the
	// volume as it is now.
	Changes func(ctx context.Context, volume string, from, to uint64) iter.Seq2[blockdev.Range, error]
}

// remembered is a volume as NBD serves it, with what was written since its snapshots.
type remembered struct {
	*limit.Device
	past Past
	name string
}

// Remember returns a volume as NBD serves it, with its past.
func Remember(d *limit.Device, past Past, name string) blockdev.Device {
	return remembered{d, past, name}
}

var _ blockdev.History = remembered{}

// Snapshots implements blockdev.History.
func (r remembered) Snapshots(ctx context.Context) ([]uint64, error) {
	views, err := r.past.Snapshots(ctx, r.name)
	var numbers []uint64
	for _, s := range views {
		if !s.Orphan {
			numbers = append(numbers, s.Number)
		}
	}
	return numbers, err
}

// Changes implements blockdev.History.
func (r remembered) Changes(ctx context.Context, from uint64, off, length int64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		for x, err := range r.past.Changes(ctx, r.name, from, 0) {
			begin, end := max(x.Offset, off), min(x.Offset+x.Length, off+length)
			switch {
			case err != nil:
				yield(blockdev.Range{}, err)
				return
			case x.Offset >= off+length:
				return
			case begin < end && !yield(blockdev.Range{Offset: begin, Length: end - begin}, nil):
				return
			}
		}
	}
}
