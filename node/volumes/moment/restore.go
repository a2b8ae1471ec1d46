package moment

import (
	"context"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/content"
)

// Differ yields where two moments differ, by offset, in whole units. It ends with io.EOF
// where yield wants no more.
func Differ(ctx context.Context, nodes func() (fold.Nodes, error), a, b Moment, yield func(blockdev.Range) bool) error {
	ranges, err := Suspects(ctx, nodes, a, b)
	if err != nil {
		return err
	}
	return Compare(ctx, a, b, ranges, yield)
}

// Restore writes to the volume of now what differs from was, and flushes it.
func Restore(ctx context.Context, nodes func() (fold.Nodes, error), now, was Moment) error {
	p := make([]byte, Piece)
	var failed error
	err := Differ(ctx, nodes, now, was, func(x blockdev.Range) bool {
		for off := x.Offset; off < min(x.Offset+x.Length, now.Size) && failed == nil; off += Piece {
			failed = restore(ctx, now, was, p[:min(x.Offset+x.Length-off, now.Size-off, Piece)], off)
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return err
	}
	return now.Vol.Flush(ctx)
}

func restore(ctx context.Context, now, was Moment, b []byte, off int64) error {
	if err := was.Padded(ctx, b, off); err != nil {
		return err
	}
	if content.IsZero(b) {
		return now.Vol.Zero(ctx, off, int64(len(b)), false, false)
	}
	return now.Vol.WriteAt(ctx, b, off, false)
}
