package pack

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// CheckWhole checks all bytes of a pack: its footer, its directory, and each frame against its name. What is not the pack
// of that ID, or damaged, is content.ErrCorrupt.
func (r *Reader) CheckWhole(ctx context.Context, id ID, b []byte) (*Directory, error) {
	d, err := r.checkWhole(ctx, id, b)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", id, err)
	}
	return d, nil
}

func (r *Reader) checkWhole(ctx context.Context, id ID, b []byte) (*Directory, error) {
	if len(b) < SizeMin || string(b[:headerSize]) != packMagic {
		return nil, fmt.Errorf("%w: no pack of %d bytes", content.ErrCorrupt, len(b))
	}
	d, err := r.directory(ctx, id, b, int64(len(b)))
	if err != nil {
		return nil, err
	}
	for _, e := range d.Entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		raw := r.pool.Get(int(e.Raw))
		_, err := decodeFrame(r.dec, e.Extent, b[e.Offset:e.End()], *raw)
		if r.pool.Put(raw); err != nil {
			return nil, fmt.Errorf("frame at %d: %w", e.Offset, err)
		}
	}
	return d, nil
}
