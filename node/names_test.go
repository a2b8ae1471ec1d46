package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// newNames is without an origin, members and records.
func newNames(t *testing.T) *Names {
	t.Helper()
	return &Names{dir: filepath.Join(t.TempDir(), "records"), catalog: func() *catalog.Catalog { return nil }, codec: content.NewCodec(), records: map[string]known{}}
}

// TestResolveTakesNoPath asks for names that would be files elsewhere: a name that
// is looked up panics here, for want of members to ask.
func TestResolveTakesNoPath(t *testing.T) {
	n := newNames(t)
	secret := filepath.Join(filepath.Dir(n.dir), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"..:secret", "../x:secret", "/:secret", ":secret", "image:../secret", "records:x", "../../../../dev:zero", "snapshot:x", "snapshot:../x@1", "image:", "a/b", ""} {
		if _, err := n.Resolve(t.Context(), name, true); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", name, err)
		}
	}
}

func TestShare(t *testing.T) {
	for _, x := range []struct{ near, far, wantNear, wantFar int }{
		{0, 0, 0, 0}, {2, 2, 2, 2}, {9, 0, 6, 0}, {0, 9, 0, 6}, {9, 9, 3, 3}, {9, 1, 5, 1}, {1, 9, 1, 5}, {4, 3, 3, 3},
	} {
		near, far := slices.Repeat([]string{"near"}, x.near), slices.Repeat([]string{"far"}, x.far)
		want := slices.Concat(near[:x.wantNear], far[:x.wantFar])
		if got := share(near, far, 6); !slices.Equal(got, want) {
			t.Errorf("%d near and %d far: %v", x.near, x.far, got)
		}
	}
}
