package images

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// TestExportLeavesFilesAlone, unless it was told to replace them, and what is no file
// in any case.
func TestExportLeavesFilesAlone(t *testing.T) {
	dir := t.TempDir()
	taken, free := filepath.Join(dir, "taken"), filepath.Join(dir, "free")
	if err := os.WriteFile(taken, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newWorld(t)
	own, link := filepath.Join(n.cfg.Dir, "volumes"), filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(own, 0o700), os.WriteFile(filepath.Join(own, "a"), nil, 0o600), os.Symlink(own, link)); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		file    string
		replace bool
		want    error
	}{{filepath.Join(own, "a"), true, content.ErrInvalid}, {filepath.Join(link, "a"), true, content.ErrInvalid}, {filepath.Join(own, "b"), true, nil}, {free, false, nil}, {free, true, nil}, {taken, false, content.ErrExists}, {taken, true, nil}, {dir, false, content.ErrInvalid}, {dir, true, content.ErrInvalid}, {os.DevNull, true, content.ErrInvalid}} {
		if err := n.MayWrite(x.file, x.replace); !errors.Is(err, x.want) {
			t.Errorf("%s, replace %t: %v, want %v", x.file, x.replace, err, x.want)
		}
	}
	if _, err := n.Export("debian", taken, false); !errors.Is(err, content.ErrExists) || !strings.Contains(err.Error(), "--force") || !strings.Contains(err.Error(), taken) {
		t.Errorf("an export: %v", err)
	}
}

// TestBeside leaves the new file or the old one, and nothing else.
func TestBeside(t *testing.T) {
	n, file := newWorld(t), filepath.Join(t.TempDir(), "disk")
	write := func(text string, err error) func(*os.File) error {
		return func(f *os.File) error {
			_, werr := f.WriteString(text)
			return errors.Join(werr, err)
		}
	}
	for _, x := range []struct {
		text    string
		replace bool
		err     error
		want    string
	}{{"first", false, nil, "first"}, {"second", false, nil, "first"}, {"third", true, content.ErrCorrupt, "first"}, {"fourth", true, nil, "fourth"}} {
		err := n.Beside(file, x.replace, write(x.text, x.err))
		if got, rerr := os.ReadFile(file); string(got) != x.want || rerr != nil || (err == nil) != (x.text == x.want) {
			t.Errorf("%s: %v; the file has %q, %v", x.text, err, got, rerr)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
			t.Errorf("%s: %s are left", x.text, left)
		}
	}
	err := n.Beside(file, true, func(f *os.File) error { return errors.Join(f.Close(), f.Sync()) })
	if err == nil || strings.Contains(err.Error(), ".export-") {
		t.Errorf("a file that can't be written: %v", err)
	}
	err = n.Beside(filepath.Join(filepath.Dir(file), "nowhere", "disk"), false, write("", nil))
	if err == nil || strings.Contains(err.Error(), ".export-") {
		t.Errorf("without a folder: %v", err)
	}
}
