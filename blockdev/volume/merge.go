package volume

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// Merge writes one segment that stands for those behind after and up to through, which is
// kept: the newest bytes within that range only. It is of this volume and epoch. ErrInvalid
// means that the range is too much for one segment.
func (v *Volume) Merge(ctx context.Context, w io.Writer, after, through content.Position) (content.SegmentRef, error) {
	v.mu.RLock()
	ref := content.SegmentRef{Volume: v.cfg.ID, Epoch: v.cfg.Epoch, After: after, Through: through}
	v.mu.RUnlock()
	at, next, done, err := v.span(after, through, 0)
	if err != nil {
		return ref, fmt.Errorf("merge: %w", err)
	}
	defer done()
	if through.Seq <= after.Seq || through.Number <= after.Number {
		return ref, fmt.Errorf("merge from entry %d to %d: %w: there is nothing", after.Seq, through.Seq, content.ErrInvalid)
	}
	sum := blake3.New()
	m, err := journal.NewMerger(journal.Header{Volume: ref.Volume, Epoch: ref.Epoch, Number: through.Number, After: after, Merged: through.Seq, Needs: through.Seq}, io.MultiWriter(w, sum))
	for more := true; more && err == nil; {
		var e extents.Extent
		if e, more, err = next(); more && err == nil {
			_, err = v.move(m, at.slots, e)
		}
		err = errors.Join(err, ctx.Err())
	}
	if err == nil {
		err = m.Finish()
	}
	if err != nil {
		return ref, fmt.Errorf("merge: %w", err)
	}
	ref.Bytes, ref.Sum = m.Off, [16]byte(sum.Sum(nil))
	return ref, nil
}

// move copies an extent into a merged segment, and returns where it is there.
func (v *Volume) move(m *journal.Merger, slots []*segment, e extents.Extent) (extents.Extent, error) {
	if e.Seg == extents.SegBad {
		return e, fmt.Errorf("%w: a part of the journal is lost", content.ErrCorrupt)
	}
	if e.Stored() {
		if err := v.readExtent(slots, e, m.Room(e), true); err != nil {
			return e, err
		}
	}
	return m.Add(e)
}
