package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// readAtOnce is how much of a file is read at a time: enough that the calls cost nothing.
const readAtOnce = 1 << 20

type entry struct {
	path     string // clean and relative; "." is the tree's own folder
	mode     uint32 // type and permissions, as in stat
	uid, gid int
	mtime    unix.Timespec
	device   uint64
	target   string // of a symbolic link
	same     string // the path, already given, that this is another name of
	xattrs   map[string]string
	lost     string // what the source has of it and can't be had, and why
	stamp    int64  // differs when the entry was changed; 0 when that can't be told
	size     int64  // of a regular file
	// data calls yield with what is in a regular file, in rising order; what it does
	// not name is zeros. It is called at most once, before the next entry is given.
	data func(yield func(p []byte, off int64) error) error
	// held is how many bytes data would give, or a little more, where that can be told
	// without reading; called instead of it.
	held func() (int64, error)
}

// bytes is how many a regular file holds, or a little more; 0 of others.
func (e *entry) bytes() (n int64, err error) {
	switch {
	case e.held != nil:
		return e.held()
	case e.data != nil:
		err = e.data(func(p []byte, _ int64) error {
			n += int64(len(p))
			return nil
		})
	}
	return n, err
}

func (e *entry) is(kind uint32) bool { return e.mode&unix.S_IFMT == kind }

// listing is a tree, read from its beginning with each call.
type listing interface {
	// each gives every entry, a folder before what is in it. A path may come again: the last counts.
	each(ctx context.Context, do func(*entry) error) error
}

// folder is a tree on this host.
type folder struct {
	root   string
	except string // a folder that is left out, with all that is in it
}

// inode tells files of this host apart.
type inode struct{ dev, ino uint64 }

func (d folder) each(ctx context.Context, do func(*entry) error) error {
	var top unix.Stat_t
	if err := unix.Stat(d.root, &top); err != nil {
		return &fs.PathError{Op: "stat", Path: d.root, Err: err}
	}
	var except unix.Stat_t // stays zero, as no file is, when there is none
	if d.except != "" {
		if err := unix.Stat(d.except, &except); err != nil {
			return &fs.PathError{Op: "stat", Path: d.except, Err: err}
		}
	}
	names := map[inode]string{}     // of files that have several
	buf := make([]byte, readAtOnce) // of one file after the other
	return filepath.WalkDir(d.root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != d.root:
			return nil // it went meanwhile, which is found at the end
		case err != nil:
			return fmt.Errorf("read %s: %w", path, err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case st.Dev == except.Dev && st.Ino == except.Ino:
			return fs.SkipDir
		}
		e, err := d.entry(path, &st, buf)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if st.Nlink > 1 && !e.is(unix.S_IFDIR) {
			id := inode{st.Dev, st.Ino}
			if e.same = names[id]; e.same == "" {
				names[id] = e.path
			}
		}
		if err := do(e); err != nil {
			return err
		}
		if e.is(unix.S_IFDIR) && st.Dev != top.Dev && ofKernel(path) {
			return fs.SkipDir
		}
		return nil
	})
}

// ofKernel tells whether a file system holds no files: proc, sys and their like,
// which take no blocks. One of FUSE may not say what it takes.
func ofKernel(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Blocks == 0 && st.Type != unix.FUSE_SUPER_MAGIC
}

func (d folder) entry(path string, st *unix.Stat_t, buf []byte) (*entry, error) {
	name, err := filepath.Rel(d.root, path)
	if err != nil {
		return nil, err
	}
	e := &entry{path: name, mode: st.Mode, uid: int(st.Uid), gid: int(st.Gid), mtime: st.Mtim, device: st.Rdev, stamp: st.Ctim.Nano()}
	if e.xattrs, err = xattrsOf(path); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.size = st.Size
		size, blocks := st.Size, st.Blocks
		e.data = func(yield func([]byte, int64) error) error { return dataOf(path, size, buf, yield) }
		e.held = func() (held int64, err error) {
			if blocks*512 >= size {
				return size, nil
			}
			err = ranges(path, size, func(_ *os.File, start, end int64) error {
				held += end - start
				return nil
			})
			return held, err
		}
	case unix.S_IFLNK:
		e.target, err = os.Readlink(path)
	}
	return e, err
}

// ranges gives what is not a hole in a file, up to size.
func ranges(path string, size int64, do func(f *os.File, start, end int64) error) error {
	if size == 0 {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // never waits for a pipe that took its place
	if errors.Is(err, unix.ENOENT) {
		return nil // it went meanwhile, which is found at the end
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	for next := int64(0); next < size; {
		start, end, err := nextData(f, next, size)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = do(f, start/block*block, end)
		}
		if err != nil {
			return err
		}
		next = end
	}
	return nil
}

func dataOf(path string, size int64, buf []byte, yield func([]byte, int64) error) error {
	return ranges(path, size, func(f *os.File, next, end int64) error {
		for next < end {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-next)], next)
			if n == 0 && errors.Is(err, io.EOF) { // it became shorter
				return nil
			}
			if n == 0 {
				return err
			}
			if err := notZero(buf[:n], next, yield); err != nil {
				return err
			}
			next += int64(n)
		}
		return nil
	})
}

// xattrsOf returns a file's extended attributes, those that we may see. None are of a file
// that went meanwhile, and of a file system without.
func xattrsOf(path string) (map[string]string, error) {
	names, err := xattr.LList(path)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	out := map[string]string{}
	for _, name := range names {
		value, err := xattr.LGet(path, name)
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOENT): // it went meanwhile
		case err != nil:
			return nil, err
		default:
			out[name] = string(value)
		}
	}
	return out, err
}
