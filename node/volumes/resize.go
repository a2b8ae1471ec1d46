package volumes

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// SetLimits replaces a volume's limits, while it is served: at once, for requests too
// that wait for the old ones.
func (v *Volumes) SetLimits(ctx context.Context, name string, l Limits) (View, error) {
	return v.reform(ctx, name, func(body *catalog.Volume) error {
		body.IOPS, body.Rate = l.IOPS, l.BytesPerSecond
		return limit.Limits(l).Check()
	}, func(a *attached) error {
		a.front.Set(limit.Limits(l))
		return nil
	})
}

// Resize makes a volume larger, while it is served. NBD clients see that when they
// connect again; users of a block device at once where the kernel can tell them, else
// once it was detached.
func (v *Volumes) Resize(ctx context.Context, name string, size int64) (View, error) {
	return v.reform(ctx, name, func(body *catalog.Volume) error {
		switch {
		case size < body.Size:
			return fmt.Errorf("%w: it has %d bytes, and a volume does not shrink to %d; make a smaller one and copy what is in use", content.ErrConflict, body.Size, size)
		case size > content.SizeMax || size%content.SectorSize != 0:
			return fmt.Errorf("size %d: %w: want a multiple of %d up to %d", size, content.ErrInvalid, content.SectorSize, int64(content.SizeMax))
		}
		body.Size = size
		return nil
	}, func(a *attached) error {
		if err := a.vol.Grow(size); err != nil || a.disk == nil {
			return err
		}
		err := a.disk.Grow(ctx)
		if errors.Is(err, errors.ErrUnsupported) {
			v.cfg.Log.Warn("a volume has grown, and its disk has not", "volume", name, "why", err)
			return nil
		}
		return err
	})
}

// reform changes the record of a volume that is served here, and then what serves it.
func (v *Volumes) reform(ctx context.Context, name string, record func(*catalog.Volume) error, serve func(*attached) error) (View, error) {
	defer v.turn(name)()
	a := v.device(name)
	_, here := v.index.get(name)
	var err error
	switch {
	case !here:
		err = v.elsewhere(ctx, name)
	case a == nil || a.vol == nil:
		err = fmt.Errorf("%w: it is not served; attach it first", content.ErrConflict)
	default:
		if err = a.revise(ctx, record); err == nil {
			err = serve(a)
		}
	}
	if err != nil {
		return View{}, fmt.Errorf("volume %q: %w", name, err)
	}
	return v.Get(name)
}

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
