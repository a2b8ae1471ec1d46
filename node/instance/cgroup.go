package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/origin/content"
)

// cgroup is the folder of the control group that the workload is in; "" where there is none.
func (i *hosted) cgroup() string {
	if i.hub.cfg.Cgroup == "" {
		return ""
	}
	return filepath.Join(i.hub.cfg.Cgroup, content.Segment(i.name))
}

// group makes the control group anew, in which nothing runs, with the limit of memory that the instance is expected to keep
// to. A machine's emulator takes more than the machine, and has none. In a group that was killed once, Linux 6.18 kills at once
// what is started into it from another.
func (i *hosted) group(e entry) (string, error) {
	dir := i.cgroup()
	if dir == "" {
		return "", nil
	}
	if err := i.ungroup(); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("control group, see --instance-cgroup: %w", err)
	}
	limit := "max"
	if e.Spec.Memory > 0 && e.Spec.Runtime == terms.Process {
		limit = strconv.FormatInt(e.Spec.Memory, 10)
	}
	f, err := os.OpenFile(filepath.Join(dir, "memory.max"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) { // the parent does not hand on that controller
		return dir, nil
	}
	if err == nil {
		_, err = f.WriteString(limit)
		err = errors.Join(err, f.Close())
	}
	return dir, err
}

// ungroup removes the control group, in which nothing runs any more, with those that the workload has made in it.
func (i *hosted) ungroup() error {
	if i.hub.cfg.Cgroup == "" {
		return nil
	}
	var all []string
	err := filepath.WalkDir(i.cgroup(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return ignore(err, fs.ErrNotExist)
	})
	for _, dir := range slices.Backward(all) {
		err = errors.Join(err, ignore(os.Remove(dir), fs.ErrNotExist))
	}
	return err
}
