package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/pkg/xattr"
	"golang.org/x/sys/unix"
)

// ReadAtOnce is how much of a file is read at a time: enough that the calls cost nothing.
const ReadAtOnce = 1 << 20

// Entry is a file, folder, link or device of a tree.
type Entry struct {
	Path     string // clean and relative; "." is the tree's own folder
	Mode     uint32 // type and permissions, as in stat
	UID, GID int
	Mtime    unix.Timespec
	Device   uint64
	Target   string // of a symbolic link
	Same     string // the path, already given, that this is another name of
	Links    int    // names in the tree, where there are more than one; of the first
	Xattrs   map[string]string
	Lost     string // what the source has of it and can't be had, and why
	Stamp    int64  // differs when the entry was changed; 0 when that can't be told
	Inode    uint64 // its number, which no other has at the time
	Size     int64  // of a regular file
	// Data calls yield with what is in a regular file, in rising order; what it does
	// not name is zeros. It is called at most once: of a tar file before the next entry is given, of others also later, one
	// at a time.
	Data func(yield func(p []byte, off int64) error) error
	// Held is how many bytes data would give, or a little more, where that can be told
	// without reading; called instead of it.
	Held func() (int64, error)
}

// Bytes is how many a regular file holds, or a little more; 0 of others.
func (e *Entry) Bytes() (n int64, err error) {
	switch {
	case e.Held != nil:
		return e.Held()
	case e.Data != nil:
		err = e.Data(func(p []byte, _ int64) error {
			n += int64(len(p))
			return nil
		})
	}
	return n, err
}

// Is reports whether an entry is of a type, as stat has them.
func (e *Entry) Is(kind uint32) bool { return e.Mode&unix.S_IFMT == kind }

// Listing is a tree, read from its beginning with each call.
type Listing interface {
	// Each gives every entry, a folder before what is in it. A path may come again: the last counts.
	Each(ctx context.Context, do func(*Entry) error) error
}

// Folder is a tree on this host.
type Folder struct {
	Root   string
	Except string // a folder that is left out, with all that is in it
}

// inode tells files of this host apart.
type inode struct{ dev, ino uint64 }

func (d Folder) Each(ctx context.Context, do func(*Entry) error) error {
	var top unix.Stat_t
	if err := unix.Stat(d.Root, &top); err != nil {
		return &fs.PathError{Op: "stat", Path: d.Root, Err: err}
	}
	var except unix.Stat_t // stays zero, as no file is, when there is none
	if d.Except != "" {
		if err := unix.Stat(d.Except, &except); err != nil {
			return &fs.PathError{Op: "stat", Path: d.Except, Err: err}
		}
	}
	names := map[inode]string{} // of files that have several
	links := sync.OnceValues(func() (map[inode]int, error) { return d.links(ctx) })
	buf := make([]byte, ReadAtOnce) // of one file after the other
	return filepath.WalkDir(d.Root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && path != d.Root:
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
		if st.Nlink > 1 && !e.Is(unix.S_IFDIR) {
			id := inode{st.Dev, st.Ino}
			if e.Same = names[id]; e.Same == "" {
				names[id] = e.Path
				counts, err := links()
				if err != nil {
					return err
				}
				if n := counts[id]; n > 1 {
					e.Links = n
				}
			}
		}
		if err := do(e); err != nil {
			return err
		}
		if e.Is(unix.S_IFDIR) && st.Dev != top.Dev && ofKernel(path) {
			return fs.SkipDir
		}
		return nil
	})
}

// links counts the names of files that have several, those in the folder: others may lie outside.
func (d Folder) links(ctx context.Context) (map[inode]int, error) {
	counts := map[inode]int{}
	return counts, filepath.WalkDir(d.Root, func(path string, entry fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && !entry.IsDir() {
			err = unix.Lstat(path, &st)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && st.Nlink > 1:
			counts[inode{st.Dev, st.Ino}]++
		case err == nil && entry.IsDir() && path != d.Root && path == d.Except:
			return fs.SkipDir
		}
		return err
	})
}

// ofKernel tells whether a file system holds no files: proc, sys and their like,
// which take no blocks. One of FUSE may not say what it takes.
func ofKernel(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Blocks == 0 && st.Type != unix.FUSE_SUPER_MAGIC
}

func (d Folder) entry(path string, st *unix.Stat_t, buf []byte) (*Entry, error) {
	name, err := filepath.Rel(d.Root, path)
	if err != nil {
		return nil, err
	}
	e := &Entry{Path: name, Mode: st.Mode, UID: int(st.Uid), GID: int(st.Gid), Mtime: st.Mtim, Device: st.Rdev, Stamp: st.Ctim.Nano(), Inode: st.Ino}
	if e.Xattrs, err = XattrsOf(path); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
		size, blocks := st.Size, st.Blocks
		e.Data = func(yield func([]byte, int64) error) error { return d.data(name, size, buf, yield) }
		e.Held = func() (held int64, err error) {
			if blocks*512 >= size {
				return size, nil
			}
			err = d.ranges(name, size, func(_ *os.File, start, end int64) error {
				held += end - start
				return nil
			})
			return held, err
		}
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(path)
	}
	return e, err
}

// ranges gives what is not a hole in a file, up to size. It fails when a link took the place of a folder on the way: who
// owns the tree may not be who may read what that leads to.
func (d Folder) ranges(name string, size int64, do func(f *os.File, start, end int64) error) error {
	if size == 0 {
		return nil
	}
	path := filepath.Join(d.Root, name)
	root, err := unix.Open(d.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: d.Root, Err: err}
	}
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}) // never waits for a pipe that took its place
	unix.Close(root)
	if errors.Is(err, unix.ENOENT) {
		return nil // it went meanwhile, which is found at the end
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	for next := int64(0); next < size; {
		start, end, err := NextData(f, next, size)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = do(f, start/Block*Block, end)
		}
		if err != nil {
			return err
		}
		next = end
	}
	return nil
}

func (d Folder) data(name string, size int64, buf []byte, yield func([]byte, int64) error) error {
	return d.ranges(name, size, func(f *os.File, next, end int64) error {
		for next < end {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), end-next)], next)
			if n == 0 && errors.Is(err, io.EOF) { // it became shorter
				return nil
			}
			if n == 0 {
				return err
			}
			if err := NotZero(buf[:n], next, yield); err != nil {
				return err
			}
			next += int64(n)
		}
		return nil
	})
}

// XattrsOf returns a file's extended attributes, those that we may see. None are of a file
// that went meanwhile, and of a file system without.
func XattrsOf(path string) (map[string]string, error) {
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
