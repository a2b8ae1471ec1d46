package convert

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/convert/files"
	"github.com/grangemesh/grange/simulations/soak"
)

// randomTree makes a tree; the same names come again in another, as something else.
func randomTree(t *rapid.T, dir string) {
	folders := []string{"."}
	var regular []string
	for range rapid.IntRange(1, 25).Draw(t, "entries") {
		name := filepath.Join(rapid.SampledFrom(folders).Draw(t, "folder"), rapid.SampledFrom([]string{"a", "b", "c", "d", "lib", "-x", "ü \"'"}).Draw(t, "name"))
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		var err error
		switch kind := rapid.SampledFrom([]string{"folder", "folder", "file", "file", "sparse", "symlink", "link", "device"}).Draw(t, "kind"); {
		case kind == "folder":
			err = os.Mkdir(path, 0o755)
			folders = append(folders, name)
		case kind == "symlink":
			err = os.Symlink(rapid.SampledFrom([]string{"a", "/lib", "../b", "gone"}).Draw(t, "target"), path)
		case kind == "device":
			err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, rapid.Uint32Range(0, 3).Draw(t, "minor"))))
		case kind == "link" && len(regular) > 0:
			if err := os.Link(rapid.SampledFrom(regular).Draw(t, "same"), path); err != nil {
				t.Fatal(err)
			}
			continue
		default:
			size := rapid.Int64Range(0, 200<<10).Draw(t, "size")
			b := noise(rapid.SampledFrom([]string{"1", "2"}).Draw(t, "content"), int(size))
			hole := int64(0)
			if kind == "sparse" {
				hole = size / 2 / files.Block * files.Block
			}
			err = holed(path, b, hole)
			regular = append(regular, path)
		}
		if err != nil {
			t.Fatal(err)
		}
		decorate(t, path)
	}
}

// holed writes a file whose first bytes are a hole.
func holed(path string, b []byte, hole int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b[hole:], hole)
	return errors.Join(err, f.Close())
}

// decorate gives a file attributes of all kinds.
func decorate(t *rapid.T, path string) {
	var err error
	if rapid.Bool().Draw(t, "owned") {
		err = unix.Lchown(path, rapid.IntRange(0, 1<<31).Draw(t, "uid"), rapid.IntRange(0, 2).Draw(t, "gid"))
	}
	info, statErr := os.Lstat(path)
	if statErr == nil && info.Mode().Type() != fs.ModeSymlink {
		err = errors.Join(err, unix.Chmod(path, uint32(rapid.IntRange(0, 0o7777).Draw(t, "mode"))))
		if info.Mode().IsRegular() && rapid.Bool().Draw(t, "attribute") {
			err = errors.Join(err, unix.Setxattr(path, "user.note", noise("note", rapid.IntRange(0, 200).Draw(t, "length")), 0))
		}
	}
	ts := unix.Timespec{Sec: rapid.Int64Range(-1<<31, 1<<33).Draw(t, "seconds"), Nsec: rapid.Int64Range(0, 999_999_999).Draw(t, "ns")}
	err = errors.Join(err, statErr, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	if err != nil {
		t.Fatal(err)
	}
}

func TestRandomTreesAreTheSameByEitherWay(t *testing.T) {
	must(t, flag.Set("rapid.checks", strconv.Itoa(soak.Rounds(100))))
	rapid.Check(t, func(rt *rapid.T) {
		was, is := t.TempDir(), t.TempDir()
		randomTree(rt, was)
		randomTree(rt, is)
		want := described(t, is)
		first := read(t, Options{Path: was})
		differ(rt, "first", within(t, read(t, Options{Path: is})), want)
		second := read(t, replacing(first, Options{Path: is}))
		differ(rt, "replaced", within(t, second), want)
		differ(rt, "a tar file", within(t, read(t, replacing(first, Options{Path: archived(t, is, ".")}))), want)
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		must(t, err)
		o := Options{Path: is, Format: Dir, Temp: t.TempDir(), Note: func(string) {}, Warn: func(string) {}, Room: func(int64) error { return nil }}
		must(t, o.fill(t.Context(), f, unix.EPERM), f.Close())
		differ(rt, "by debugfs", within(t, read(t, Options{Path: f.Name()})), want)
	})
}
