package volumes

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/content"
)

// letGo is what happens to the snapshots of a volume before its folder goes: they go too,
// or get into the bucket, if this node has some that are not there.
func (v *Volumes) letGo(ctx context.Context, e index.Entry, spec RemoveSpec) error {
	a := v.device(e.Name)
	switch {
	case spec.Purge:
		return v.records().Purge(ctx, e.Name)
	case len(e.Waiting) == 0:
		return nil
	case a == nil || a.folds == nil:
		if spec.Force {
			return nil
		}
		return fmt.Errorf("%w: %d snapshots of it are on this disk alone: attach it first, or use --purge", content.ErrConflict, len(e.Waiting))
	}
	err := a.folds.Run(ctx, fold.Safe)
	if err != nil && !spec.Force {
		return fmt.Errorf("%d snapshots of it are on this disk alone: %w", len(e.Waiting), err)
	}
	return nil
}
