package pack

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// ParsePack reads the directory of a pack of which all bytes are there; they are not checked beyond it, see CheckFrame.
func (r *Reader) ParsePack(ctx context.Context, id ID, object []byte) (*Directory, error) {
	d, err := r.directory(ctx, id, object, int64(len(object)))
	if err != nil {
		return nil, fmt.Errorf("read pack %s: %w", id, err)
	}
	return d, nil
}

// CheckFrame fails with content.ErrCorrupt unless what lies at e in a pack, of which all bytes are there, is the object
// that e names.
func (r *Reader) CheckFrame(e Extent, object []byte) error {
	if err := e.Check(); err != nil {
		return err
	}
	if int64(e.End()) > int64(len(object)) || e.Raw > ManifestSizeMax {
		return fmt.Errorf("read %s: %w: %d raw bytes in a pack of %d", e.Location, content.ErrCorrupt, e.Raw, len(object))
	}
	raw := r.pool.Get(int(e.Raw))
	defer r.pool.Put(raw)
	if _, err := decodeFrame(r.dec, e, object[e.Offset:e.End()], *raw); err != nil {
		return fmt.Errorf("read %s: %w", e.Location, err)
	}
	return nil
}

// CheckWhole checks all bytes of a pack: its footer, its directory, and each frame against its name. What is not the pack
// of that ID, or damaged, is content.ErrCorrupt.
func (r *Reader) CheckWhole(ctx context.Context, id ID, object []byte) (*Directory, error) {
	if len(object) < SizeMin || string(object[:headerSize]) != packMagic {
		return nil, fmt.Errorf("pack %s: %w: no pack of %d bytes", id, content.ErrCorrupt, len(object))
	}
	d, err := r.ParsePack(ctx, id, object)
	if err != nil {
		return nil, err
	}
	for _, e := range d.Entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := r.CheckFrame(e.Extent, object); err != nil {
			return nil, err
		}
	}
	return d, nil
}
