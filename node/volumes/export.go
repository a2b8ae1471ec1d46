package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/grangemesh/grange/origin/content"
)

// Export writes what a reference stands for to a file, which is empty: holes and zeros
// stay holes. What was written is synced when it returns.
func (v *Volumes) Export(ctx context.Context, ref content.Ref, f *os.File, progress Progress) error {
	m, err := v.moment(ctx, ref)
	if err == nil {
		err = errors.Join(m.Export(ctx, f, progress), m.Close())
	}
	if err != nil {
		return fmt.Errorf("export %s: %w", ref, err)
	}
	return nil
}
