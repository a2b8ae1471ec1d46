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
func (v *Volumes) Export(ctx context.Context, ref content.Ref, f *os.File, progress Progress) (err error) {
	m, err := v.moment(ctx, ref)
	if err != nil {
		return fmt.Errorf("export %s: %w", ref, err)
	}
	defer func() {
		if err = errors.Join(err, m.close()); err != nil {
			err = fmt.Errorf("export %s: %w", ref, err)
		}
	}()
	if err := f.Truncate(m.size); err != nil {
		return err
	}
	p := make([]byte, readPiece)
	for off := int64(0); off < m.size; {
		n := min(m.size-off, readPiece)
		if err := m.read(ctx, p[:n], off); err != nil {
			return err
		}
		for part := int64(0); part < n; part += content.ChunkSizeMin {
			b := p[part:min(part+content.ChunkSizeMin, n)]
			if content.IsZero(b) {
				continue
			}
			if _, err := f.WriteAt(b, off+part); err != nil {
				return err
			}
		}
		if off += n; progress != nil {
			progress(off, m.size)
		}
	}
	return f.Sync()
}
