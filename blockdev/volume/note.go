package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// noteName is a file with the number of the last segment that is durable. What the
// segments say of each other shows that one is missing among them; this shows that
// the last ones are.
const noteName = "synced"

// readNote returns 0 where nothing was noted yet.
func readNote(dir string) (uint64, error) {
	path := filepath.Join(dir, noteName)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	number, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: want the number of a segment; remove the file if all segments are there", path, content.ErrCorrupt)
	}
	return number, nil
}

// note writes down that segments are durable. It may fail on a full disk, and is
// tried again by the next sync: what was flushed is flushed all the same. Called
// with syncing, or before the volume is anybody's.
func (v *Volume) note(synced []*segment) {
	if len(synced) == 0 || v.cfg.ReadOnly || synced[len(synced)-1].number <= v.noted {
		return
	}
	number := synced[len(synced)-1].number
	if err := durable.WriteFile(filepath.Join(v.cfg.Dir, noteName), strconv.AppendUint(nil, number, 10), 0o600); err != nil {
		v.cfg.Log.Debug("no note of the journal's last segment", "dir", v.cfg.Dir, "err", err)
		return
	}
	v.noted = number
}
