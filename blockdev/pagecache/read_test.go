package pagecache_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/blockdev/pagecache"
)

func TestRead(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<12)
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5000)
	if !pagecache.Read(f, p, 777) || !bytes.Equal(p, data[777:5777]) {
		t.Error("what was just written is not read")
	}
	if pagecache.Read(f, p, int64(len(data))-4999) {
		t.Error("read beyond the end")
	}
	if !pagecache.Read(f, nil, 0) {
		t.Error("nothing can't be read")
	}
	if n := testing.AllocsPerRun(100, func() { pagecache.Read(f, p, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if pagecache.Read(f, p, 0) {
		t.Error("read from a closed file")
	}
}
