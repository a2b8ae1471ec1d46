package volumes

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// copyFolder copies a folder as it is at one moment: until nothing has changed meanwhile.
func copyFolder(t testing.TB, to, from string) {
	before := filesUnder(t, from)
	for {
		now := filesUnder(t, from)
		if maps.Equal(before, now) {
			break
		}
		before = now
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		path := filepath.Join(to, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o700)
		} else if err == nil {
			err = os.WriteFile(path, []byte(before[name]), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// filesUnder are the files and folders in one, these with a slash behind their names.
func filesUnder(t testing.TB, root string) map[string]string {
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || path == root {
			return nil
		}
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if e.IsDir() {
			out[name+"/"] = ""
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil {
			out[name] = string(b)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// losePower takes from a folder that a kill has left what was not synced: draw says how
// much of n.
func losePower(t testing.TB, root string, draw func(n int64) int64) {
	folders, _ := os.ReadDir(filepath.Join(root, "volumes")) // it may not be there yet
	for _, folder := range folders {
		dir := filepath.Join(root, "volumes", folder.Name())
		id, err := hex.DecodeString(strings.TrimSuffix(folder.Name(), ".new"))
		if err != nil || len(id) != len(content.VolumeID{}) {
			continue
		}
		synced, _, err := journal.ReadNote(dir, content.VolumeID(id))
		if err != nil {
			continue // the next start says so
		}
		found, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			if _, number, ok := journal.ParseName(file.Name()); ok && number >= synced.Number {
				tear(t, filepath.Join(dir, file.Name()), number, synced, draw)
			}
		}
	}
}

// tear takes an unsynced end of a segment, or makes it zeros.
func tear(t testing.TB, path string, number uint64, synced journal.Note, draw func(n int64) int64) {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, _ := journal.DecodeHeader(b)
	from := int64(0)
	if number == synced.Number {
		from = synced.Length
	}
	if h.Merged > 0 || from >= int64(len(b)) { // that had no name before it was synced
		return
	}
	at := from + draw(int64(len(b))-from)
	switch draw(3) {
	case 0:
		b = b[:at]
	case 1:
		clear(b[at : at+draw(int64(len(b))-at)])
	case 2:
		if number > synced.Number {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
