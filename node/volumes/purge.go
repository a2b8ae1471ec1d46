package volumes

import (
	"context"
	"errors"
	"fmt"
)

// purge deletes all snapshots of a name: what they hold goes with the next collection of
// garbage, but for what forks have of it.
func (v *Volumes) purge(ctx context.Context, name string) error {
	var errs []error
	for _, r := range v.cfg.Registry.Snapshots(ctx, name) {
		if err := v.cfg.Registry.Delete(ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("remove snapshot %s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}
