package instance

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestBaseThatIsGone: what was written over a tree is not taken for all that an instance has once nobody knows which tree that was.
func TestBaseThatIsGone(t *testing.T) {
	i := folder{newHosted(&Hub{cfg: Config{Dir: t.TempDir()}}, entry{Name: "web"})}
	if lent, err := i.lent(); lent != nil || err != nil {
		t.Errorf("one that has all in its folder: %v, %v", lent, err)
	}
	if err := os.MkdirAll(filepath.Join(i.dir, upperDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := i.known(t.Context()); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("without its base: %v", err)
	}
}
