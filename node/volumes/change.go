package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Resize makes a volume larger, while it is served: its record first, then the disk. One that has
// the size already is left as it is. NBD clients see the new size when they connect again.
func (v *Volumes) Resize(ctx context.Context, name string, size int64) (terms.View, error) {
	if size <= 0 || size > content.SizeMax || size%content.SectorSize != 0 {
		return terms.View{}, fmt.Errorf("resize volume %q to %d bytes: %w: want a multiple of %d up to %d", name, size, content.ErrInvalid, content.SectorSize, int64(content.SizeMax))
	}
	return v.alter(ctx, name, func(body *catalog.Volume) error {
		if size < body.Size {
			return fmt.Errorf("%w: it has %d bytes, and can't be made smaller; make another one and copy what is to stay", content.Differs, body.Size)
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

// SetLimits replaces a volume's limits, while it is served.
func (v *Volumes) SetLimits(ctx context.Context, name string, l terms.Limits) (terms.View, error) {
	limits := limit.Limits{IOPS: l.IOPS, BytesPerSecond: l.BytesPerSecond}
	if err := limits.Check(); err != nil {
		return terms.View{}, fmt.Errorf("limit volume %q: %w", name, err)
	}
	return v.alter(ctx, name, func(body *catalog.Volume) error {
		body.IOPS, body.Rate = l.IOPS, l.BytesPerSecond
		return nil
	}, func(a *attached) error { a.front.Set(limits); return nil })
}

// alter changes the record of a volume that is served, and then the volume.
func (v *Volumes) alter(ctx context.Context, name string, record func(*catalog.Volume) error, disk func(*attached) error) (_ terms.View, err error) {
	defer v.turn(name)()
	defer terms.During(&err, "volume %q", name)
	a, err := v.served(ctx, name)
	if err == nil {
		err = a.revise(ctx, record)
	}
	if err == nil {
		err = disk(a)
	}
	if err != nil {
		return terms.View{}, err
	}
	return v.Get(name)
}

// served is a volume that this node serves now.
func (v *Volumes) served(ctx context.Context, name string) (*attached, error) {
	if e, here := v.index.Get(name); !here || e.Reader {
		return nil, v.names().Elsewhere(ctx, name)
	}
	switch a := v.device(name); {
	case a == nil:
		return nil, fmt.Errorf("%w: it is not served here: attach it, or ask the node that has it by `grange volume ls --all`", content.ErrConflict)
	case a.opening != nil:
		return nil, fmt.Errorf("%w: it is being opened", content.ErrUnavailable)
	case a.err != nil:
		return nil, a.err
	default:
		return a, nil
	}
}
