package volumes

import (
	"context"
	"iter"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/limit"
)

// remembered is a volume as NBD serves it, with what was written since its snapshots.
type remembered struct {
	*limit.Device
	v    *Volumes
	name string
}

var _ blockdev.History = remembered{}

// Snapshots implements blockdev.History.
func (r remembered) Snapshots(ctx context.Context) ([]uint64, error) {
	views, err := r.v.Snapshots(ctx, r.name)
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
		for x, err := range r.v.Changes(ctx, r.name, from, 0) {
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
