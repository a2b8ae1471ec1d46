package instance

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// targetDir is what is remembered of the packs of a target.
const targetDir = "target"

// target opens the instance's own.
func (i folder) target(ctx context.Context, e entry, id catalog.InstanceID) (*images.Target, error) {
	return i.hub.cfg.Library.Target(ctx, e.Spec.TargetOf(i.name, id), filepath.Join(i.dir, targetDir))
}

// bringBack makes the folder of data what was put away at the target.
func (i folder) bringBack(ctx context.Context, e entry, body catalog.Instance) ([]string, error) {
	t, err := i.target(ctx, e, body.ID)
	if err != nil {
		return nil, err
	}
	return t.Harvest(ctx, i, body.Away, i.data())
}

// putAway stores what the workload has at the target, and has the record say so; then what was there before is of no more use.
func (i folder) putAway(ctx context.Context, e entry, body catalog.Instance) error {
	t, err := i.target(ctx, e, body.ID)
	if err != nil {
		return err
	}
	away, now, err := t.Stow(ctx, i, images.ToStow{Dir: i.data(), Scope: e.Spec.Scope(i.hub.cfg.Farm), Was: loadStowed(i.dir)}, body.Away)
	if err != nil {
		return err
	}
	i.remember(now)
	if err := i.saved(ctx, away.Root, func(body *catalog.Instance) { body.Away = away.Head }); err != nil {
		return err
	}
	if err := t.Tidy(ctx, away); err != nil { // the next time
		i.hub.cfg.Log.Warn("what an instance had before is still at its target", "name", i.name, "err", err)
	}
	return nil
}

// mayMove fails for an instance whose data are elsewhere than at the target that is asked for.
func mayMove(body catalog.Instance, was, target string) error {
	if (body.Head != nil || !body.Away.IsHole()) && was != target {
		return fmt.Errorf("%w: what it has is at target %q, not at %q; choose another name, or obliterate it", content.Differs, was, target)
	}
	return nil
}
