package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// memory is a disk that can be told to go wrong.
type memory struct {
	b     []byte
	fails error
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) { return copy(p, m.b[off:]), m.fails }
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	return copy(m.b[off:], p), m.fails
}
func (m *memory) Zero(off, n int64) error { clear(m.b[off:][:n]); return m.fails }
func (m *memory) Trim(off, n int64) error {
	if off%1024 == 0 { // some disks do, some don't
		clear(m.b[off:][:n])
	}
	return m.fails
}
func (m *memory) Sync() error { return m.fails }

func TestShadowSeesWhatIsWrong(t *testing.T) {
	const size = 1 << 20
	for name, spoil := range map[string]func(m *memory, before []byte){
		"nothing":             func(*memory, []byte) {},
		"a sector comes back": func(m *memory, before []byte) { copy(m.b, before) },
		"a bit":               func(m *memory, _ []byte) { m.b[size/3] ^= 1 },
		"an error":            func(m *memory, _ []byte) { m.fails = errors.New("lost") },
	} {
		m := &memory{b: make([]byte, size)}
		s := NewShadow(m, size, 1)
		steps := func() {
			for range 300 {
				if err := s.Step(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		steps()
		before := append([]byte(nil), m.b...)
		steps()
		spoil(m, before)
		if err := s.Check(); (err == nil) != (name == "nothing") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFilesSeeWhatIsLost puts a folder into states that crashes leave, and into some that
// none may.
func TestFilesSeeWhatIsLost(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(dir, before string) error
		want  string // "" where all is well
	}{
		"nothing": {func(string, string) error { return nil }, ""},
		"half a new file": {func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "file1.new"), []byte("half"), 0o600)
		}, ""},
		"a file is as before": {func(dir, before string) error {
			return copyFile(filepath.Join(before, "file1"), filepath.Join(dir, "file1"))
		}, "was synced"},
		"a file is gone": {func(dir, _ string) error { return os.Remove(filepath.Join(dir, "file1")) }, "no such file"},
		"a file is cut":  {func(dir, _ string) error { return os.Truncate(filepath.Join(dir, "file1"), 16) }, "not those of version"},
		"the blocks are as once": {func(dir, before string) error {
			return copyFile(filepath.Join(before, blocksName), filepath.Join(dir, blocksName))
		}, "was synced"},
		"a file of zeros": {func(dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "file1"), make([]byte, 4096), 0o600)
		}, "was synced"},
	} {
		dir, before := t.TempDir(), t.TempDir()
		f, err := NewFiles(dir, 1)
		if err != nil {
			t.Fatal(err)
		}
		steps := func() {
			for range 40 {
				if err := f.Step(); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.replace(1); err != nil {
				t.Fatal(err)
			}
		}
		steps()
		if err := os.CopyFS(filepath.Join(before, "all"), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		steps()
		if err := x.spoil(dir, filepath.Join(before, "all")); err != nil {
			t.Fatal(err)
		}
		switch err := f.Check(); {
		case x.want == "" && err != nil, x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)):
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// TestWorkEnds tells of work that goes on, that fails, and that is stopped.
func TestWorkEnds(t *testing.T) {
	w := Begin("counting", func() error { return nil })
	if err := errors.Join(w.Progress(t.Context(), 3), w.Stop()); err != nil {
		t.Error(err)
	}
	left := 3
	w = Begin("failing", func() error {
		if left--; left == 0 {
			return os.ErrClosed
		}
		return nil
	})
	if err := w.Progress(t.Context(), 1<<30); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if err := w.Stop(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}
