// Package frames reads frames of packs, again where they came damaged, and where
// their pack has gone.
package frames

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Origin reads packs. It is a pack.Reader.
type Origin interface {
	ReadFrames(ctx context.Context, frames []pack.Extent) ([]content.Verified, error)
}

// Relocator is an Origin that finds frames whose pack was rewritten into another.
type Relocator interface {
	Relocate(ctx context.Context, e pack.Extent) (pack.Extent, error)
}

// Read reads frames of one run. Those that came damaged are read once more, and then
// looked for where their pack may have gone. The result has an element for each
// frame, the zero Verified for those that could not be had.
func Read(ctx context.Context, origin Origin, frames []pack.Extent) ([]content.Verified, error) {
	got, err := origin.ReadFrames(ctx, frames)
	if got == nil {
		got = make([]content.Verified, len(frames))
	}
	if errors.Is(err, content.ErrCorrupt) {
		var again []content.Verified
		var bad []int
		var missing []pack.Extent
		for i, v := range got {
			if v.Bytes() == nil {
				bad, missing = append(bad, i), append(missing, frames[i])
			}
		}
		if again, err = origin.ReadFrames(ctx, missing); again != nil {
			for i, v := range again {
				got[bad[i]] = v
			}
		}
	}
	finder, ok := origin.(Relocator)
	if !ok || !errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrNotFound) {
		return got, err
	}
	for i, e := range frames {
		if got[i].Bytes() != nil {
			continue
		}
		v, lost := readMoved(ctx, origin, finder, e)
		if lost != nil { // the others will be as lost; a reader asks for them again
			return got, errors.Join(lost, err)
		}
		got[i] = v
	}
	return got, nil
}

// readMoved reads a frame where its pack's footer says that it went. Who may write
// footers must not open the packs of a narrower scope so.
func readMoved(ctx context.Context, origin Origin, finder Relocator, e pack.Extent) (content.Verified, error) {
	moved, err := finder.Relocate(ctx, e)
	if err != nil {
		return content.Verified{}, err
	}
	if !moved.Pack.Scope().Covers(e.Pack.Scope()) {
		return content.Verified{}, fmt.Errorf("%s was moved to %s: %w: fewer may read that", e.Pack, moved.Pack, content.ErrForbidden)
	}
	got, err := origin.ReadFrames(ctx, []pack.Extent{moved})
	if err != nil {
		return content.Verified{}, err
	}
	return got[0], nil
}
