package dir

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

func TestKeysStayInTheFolder(t *testing.T) {
	b, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "/a", "../a", "a/../b", "a//b", "a/", ".tmp/x", "a/.b"} {
		if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte("x")), bucket.Condition{}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("Put(%q): %v, want ErrInvalid", key, err)
		}
		if _, err := b.Get(t.Context(), key, bucket.Range{}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("Get(%q): %v, want ErrInvalid", key, err)
		}
	}
}

// TestOneOfManyWritersWins lets writers of two handles, as of two processes,
// race for each version of an object.
func TestOneOfManyWritersWins(t *testing.T) {
	root := t.TempDir()
	const writers, rounds = 8, 20
	etag := ""
	for range rounds {
		cond := bucket.IfAbsent()
		if etag != "" {
			cond = bucket.IfMatch(etag)
		}
		type result struct {
			info bucket.Info
			err  error
		}
		results := make(chan result, writers)
		for i := range writers {
			go func() {
				b, err := Open(root)
				if err != nil {
					results <- result{err: err}
					return
				}
				info, err := b.Put(t.Context(), "a/b", bucket.Bytes([]byte{byte(i)}), cond)
				results <- result{info, err}
			}()
		}
		won := 0
		for range writers {
			r := <-results
			switch {
			case r.err == nil:
				won++
				etag = r.info.ETag
			case !errors.Is(r.err, bucket.ErrPrecondition):
				t.Fatal(r.err)
			}
		}
		if won != 1 {
			t.Fatalf("%d writers won, want 1", won)
		}
	}
	b, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	o, err := b.Get(t.Context(), "a/b", bucket.Range{})
	if err != nil || o.ETag != etag {
		t.Fatalf("the object's tag is not the last winner's: %v", err)
	}
	if data, err := io.ReadAll(o.Body); err != nil || len(data) != 1 || o.Body.Close() != nil {
		t.Errorf("%q, %v", data, err)
	}
	if left, err := os.ReadDir(filepath.Join(root, tmpDir)); err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v", tmpDir, left, err)
	}
}
