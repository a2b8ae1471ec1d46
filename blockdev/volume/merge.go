package volume

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/grangemesh/grange/origin/content"
)

// Merge writes one segment that stands for those behind after and up to through, which is
// kept: the newest bytes within that range only. It is of this volume and epoch. ErrInvalid
// means that the range is too much for one segment.
func (v *Volume) Merge(ctx context.Context, w io.Writer, after, through content.Position) (content.SegmentRef, error) {
	ref := content.SegmentRef{Volume: v.cfg.ID, Epoch: v.cfg.Epoch, After: after, Through: through}
	at, extents, done, err := v.span(after, through)
	if err != nil {
		return ref, fmt.Errorf("merge: %w", err)
	}
	defer done()
	if through.Seq <= after.Seq || through.Number <= after.Number {
		return ref, fmt.Errorf("merge from entry %d to %d: %w: there is nothing", after.Seq, through.Seq, content.ErrInvalid)
	}
	sum := blake3.New()
	m, err := newMerger(header{ref.Volume, ref.Epoch, through.Number, after, through.Seq, through.Seq}, io.MultiWriter(w, sum))
	for more := true; more && err == nil; {
		var e extent
		if e, more, err = extents(); more && err == nil {
			_, err = v.move(m, at.slots, e)
		}
		err = errors.Join(err, ctx.Err())
	}
	if err == nil {
		err = m.finish()
	}
	if err != nil {
		return ref, fmt.Errorf("merge: %w", err)
	}
	ref.Bytes, ref.Sum = m.off, [16]byte(sum.Sum(nil))
	return ref, nil
}

// move copies an extent into a merged segment, and returns where it is there.
func (v *Volume) move(m *merger, slots []*segment, e extent) (extent, error) {
	if e.seg == segBad {
		return e, fmt.Errorf("%w: a part of the journal is lost", content.ErrCorrupt)
	}
	if e.stored() {
		if err := v.readExtent(slots, e, m.room(e), true); err != nil {
			return e, err
		}
	}
	return m.add(e)
}
