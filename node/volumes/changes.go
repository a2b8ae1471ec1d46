package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/origin/content"
)

// Changes yields the ranges in which two snapshots of a volume differ, by offset, in whole
// units of 4 KiB; with to 0 the volume itself, as it is now, is the second. Only what was
// written between them, or lies in chunks that their maps have not alike, is read.
func (v *Volumes) Changes(ctx context.Context, name string, from, to uint64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		if err := v.changesOf(ctx, name, from, to, func(x blockdev.Range) bool { return yield(x, nil) }); err != nil {
			yield(blockdev.Range{}, fmt.Errorf("changes of volume %q: %w", name, err))
		}
	}
}

func (v *Volumes) changesOf(ctx context.Context, name string, from, to uint64, yield func(blockdev.Range) bool) (err error) {
	first, second := content.Ref{Kind: content.KindSnapshot, Name: name, Seq: from}, content.Ref{Kind: content.KindVolume, Name: name}
	if to != 0 {
		second = content.Ref{Kind: content.KindSnapshot, Name: name, Seq: to}
	}
	a, err := v.moment(ctx, first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := v.moment(ctx, second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err = moment.Differ(ctx, v.nodes, a, b, yield); errors.Is(err, io.EOF) { // who asked has enough
		return nil
	}
	return err
}
