package moment

import (
	"context"
	"os"

	"github.com/grangemesh/grange/origin/content"
)

// Export writes the disk to a file, which is empty: holes and zeros stay holes. What was
// written is synced when it returns. progress may be nil.
func (m Moment) Export(ctx context.Context, f *os.File, progress func(done, total int64)) error {
	if err := f.Truncate(m.Size); err != nil {
		return err
	}
	p := make([]byte, Piece)
	for off := int64(0); off < m.Size; {
		n := min(m.Size-off, Piece)
		if err := m.Read(ctx, p[:n], off); err != nil {
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
			progress(off, m.Size)
		}
	}
	return f.Sync()
}
