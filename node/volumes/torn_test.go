package volumes

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/right"
)

// TestForkOfATornOrphan: a node lost its power in the middle of an entry that nobody was told
// of, and another took the volume over. A fork of the orphan is what the orphan reads as: all
// that is whole.
func TestForkOfATornOrphan(t *testing.T) {
	for _, cut := range []int64{-100, 0, 100} {
		p := newPair(t)
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 10, 1)
		e, _ := p.a.index.Get("disk")
		folder, left := p.a.index.Path(e), t.TempDir()
		copyFolder(t, left, folder)
		p.b.put(t, "disk", Spec{Takeover: true})
		p.a.stop(t)
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
		copyFolder(t, folder, left)
		segs, _ := filepath.Glob(filepath.Join(folder, "*.seg"))
		last := segs[len(segs)-1]
		info, err := os.Stat(last)
		if err == nil {
			err = os.Truncate(last, info.Size()+cut)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.a = startWorld(t, filepath.Dir(p.a.cfg.Dir))
		p.join(p.a)
		_ = p.a.openAll(t.Context()) // it is another's
		p.a.lookAtOwned(t.Context(), right.NewLooks(0, p.a.cfg.Now().Add(-time.Hour)))
		got := p.a.exported(t, "snapshot:disk@e1-orphan")
		p.a.put(t, "fork", Spec{From: refOf(t, "snapshot:disk@e1-orphan")})
		p.a.is(t, "fork", got)
	}
}
