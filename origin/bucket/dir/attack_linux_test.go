package dir

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
)

// TestABackdatedObject: who may write to the folder sets times as it likes, and a record
// that was signed after a revocation must not look like one from before it.
func TestABackdatedObject(t *testing.T) {
	b := open(t, t.TempDir())
	begun := time.Now().Add(-time.Second)
	if _, err := b.Put(t.Context(), "records/x", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(b.root, "records/x"), past, past); err != nil {
		t.Fatal(err)
	}
	_, info, err := bucket.ReadAll(t.Context(), b, "records/x", 10)
	if err != nil || info.Modified.Before(begun) {
		t.Errorf("read: written at %s (%v), and it was not there before %s", info.Modified, err, begun)
	}
	for info, err := range b.List(t.Context(), "records/", "") {
		if err != nil || info.Modified.Before(begun) {
			t.Errorf("listed: written at %s (%v)", info.Modified, err)
		}
	}
}
