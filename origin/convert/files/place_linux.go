package files

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Place writes entries into a folder of this host, each after the folder that it lies in, over what is there: what is
// alike stays. Whatever links lead where, it writes nowhere else. Use: NewPlace, Put …, Close. Not safe for concurrent
// use: see Beside.
type Place struct {
	root  int
	dir   int    // the folder used last
	dirOf string // and its path
	buf   []byte
	// folders are finished last: what is put into one changes its time.
	folders map[string]*Entry
	*written
}

// written is what all know that write into one folder.
type written struct {
	mu     sync.Mutex // guards what follows; held while lost is called
	lost   func(what, path string)
	inodes map[uint64]bool // that were written, and are no other entry's
}

// claim makes a file an entry's that is no other's yet.
func (w *written) claim(inode uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.inodes[inode]
	w.inodes[inode] = true
	return !was
}

func (w *written) lose(what, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost(what, path)
}

// NewPlace writes below root, a descriptor of a folder, which Close closes. lost is told what can't be written of an
// entry.
func NewPlace(root int, lost func(what, path string)) (*Place, error) {
	x := &Place{root: root, dir: -1, buf: make([]byte, ReadAtOnce), folders: map[string]*Entry{}, written: &written{lost: lost, inodes: map[uint64]bool{}}}
	if err := x.enter("."); err != nil {
		return nil, errors.Join(err, unix.Close(root))
	}
	return x, nil
}

// Beside has another put regular files into folders that are there, of other paths, while this one does. It ends before x is
// closed, by Leave.
func (x *Place) Beside() *Place {
	return &Place{root: x.root, dir: -1, buf: make([]byte, ReadAtOnce), written: x.written}
}

// Leave ends what Beside began.
func (x *Place) Leave() {
	if x.dir >= 0 {
		unix.Close(x.dir)
	}
}

// enter makes dir the folder that is worked in. Links of the tree lead to places in the tree.
func (x *Place) enter(dir string) error {
	if x.dir >= 0 && x.dirOf == dir {
		return nil
	}
	fd, err := unix.Openat2(x.root, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return &fs.PathError{Op: "open folder", Path: dir, Err: err}
	}
	if x.dir >= 0 {
		unix.Close(x.dir)
	}
	x.dir, x.dirOf = fd, dir
	return nil
}

// in is a path to a name in the folder that is worked in, for calls that know paths only.
func (x *Place) in(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", x.dir, name) }

// Prune removes what is not to be there: all but the paths that keep says, of folders or of others, and files that have
// names elsewhere too. A folder's own name in whole paths is asked for.
func (x *Place) Prune(keep func(path string, folder bool) bool) error {
	if err := x.enter("."); err != nil {
		return err
	}
	top := x.in(".")
	root, err := os.OpenRoot(top) // which follows no link that takes a folder's place meanwhile
	if err != nil {
		return err
	}
	defer root.Close()
	linked := map[inode][]string{} // the names of files that have several
	err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		name, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		if keep(name, d.IsDir()) {
			var st unix.Stat_t
			switch err := unix.Lstat(p, &st); {
			case err != nil:
				return err
			case d.IsDir() && st.Mode&0o700 != 0o700: // until Close: its owner may be who writes
				return root.Chmod(name, 0o700)
			case st.Nlink > 1 && !d.IsDir():
				id := inode{st.Dev, st.Ino}
				linked[id] = append(linked[id], name)
			}
			return nil
		}
		if err := root.RemoveAll(name); err != nil || !d.IsDir() {
			return err
		}
		return fs.SkipDir
	})
	for _, names := range linked {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(filepath.Join(top, names[0]), &st)
		}
		for _, name := range names {
			if err == nil && uint64(st.Nlink) > uint64(len(names)) {
				err = root.RemoveAll(name)
			}
		}
	}
	return err
}

// Put has what is at an entry's path be as the entry says.
func (x *Place) Put(ctx context.Context, e *Entry) error {
	err := x.place(ctx, e)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%q has no place in the tree: %w", e.Path, err)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", e.Path, err)
	}
	return nil
}

func (x *Place) place(ctx context.Context, e *Entry) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := path.Base(e.Path)
	if err := x.enter(path.Dir(e.Path)); err != nil {
		return err
	}
	var old unix.Stat_t
	err := unix.Fstatat(x.dir, name, &old, unix.AT_SYMLINK_NOFOLLOW)
	exists := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if exists && !x.mayStay(e, name, &old) {
		exists = false
		if err := os.RemoveAll(x.in(name)); err != nil {
			return err
		}
	}
	switch {
	case e.Same != "":
		if exists {
			return nil
		}
		return x.unlessDevice(e, unix.Linkat(x.root, e.Same, x.dir, name, 0), unix.ENOENT)
	case e.Is(unix.S_IFDIR):
		x.folders[e.Path] = e
		if exists {
			return nil
		}
		return unix.Mkdirat(x.dir, name, 0o700)
	case e.Is(unix.S_IFREG):
		if err = x.content(ctx, e, name, exists); errors.Is(err, unix.ETXTBSY) {
			return x.instead(ctx, e, name)
		}
	case exists:
	case e.Is(unix.S_IFLNK):
		err = unix.Symlinkat(e.Target, x.dir, name)
	default:
		if err = unix.Mknodat(x.dir, name, e.Mode, int(e.Device)); err != nil {
			return x.unlessDevice(e, err, unix.EPERM)
		}
	}
	if err != nil {
		return err
	}
	return x.attributes(e, name)
}

// unlessDevice is err, but for what fails so when devices may not be made.
func (x *Place) unlessDevice(e *Entry, err, fails error) error {
	if !errors.Is(err, fails) || !e.Is(unix.S_IFCHR) && !e.Is(unix.S_IFBLK) {
		return err
	}
	x.lose("a device is lost, which only root makes", e.Path)
	return nil
}

// mayStay tells whether what is there can be made into e: it is of that kind, and no other entry's.
func (x *Place) mayStay(e *Entry, name string, old *unix.Stat_t) bool {
	switch {
	case e.Same != "":
		var same unix.Stat_t
		return unix.Fstatat(x.root, e.Same, &same, unix.AT_SYMLINK_NOFOLLOW) == nil && same.Ino == old.Ino
	case old.Mode&unix.S_IFMT != e.Mode&unix.S_IFMT:
		return false
	case e.Is(unix.S_IFDIR):
		return true
	case e.Is(unix.S_IFLNK):
		if target, err := os.Readlink(x.in(name)); err != nil || target != e.Target {
			return false
		}
	case !e.Is(unix.S_IFREG) && old.Rdev != e.Device:
		return false
	}
	return x.claim(old.Ino)
}

// content writes what differs from what is there, in place.
func (x *Place) content(ctx context.Context, e *Entry, name string, exists bool) error {
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !exists {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Openat(x.dir, name, flags, 0o600)
	if exists && errors.Is(err, unix.EACCES) { // its owner may be who writes
		if err = unix.Fchmodat(x.dir, name, 0o600, 0); err == nil {
			fd, err = unix.Openat(x.dir, name, flags, 0)
		}
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), e.Path)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	old := info.Size()
	if old > e.Size {
		if old, err = e.Size, f.Truncate(e.Size); err != nil {
			return err
		}
	}
	at := int64(0)
	err = e.Data(func(p []byte, off int64) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := hollow(f, at, min(off, old)); err != nil {
			return err
		}
		at = off + int64(len(p))
		return x.write(f, p, off, old)
	})
	if err == nil {
		err = hollow(f, at, old)
	}
	if err == nil && old != e.Size {
		err = f.Truncate(e.Size)
	}
	return err
}

// instead writes a file beside a program that runs, which can't be written, and puts it in its place.
func (x *Place) instead(ctx context.Context, e *Entry, name string) error {
	beside := ".grange-" + rand.Text() // which a Prune removes if this one is killed
	err := x.content(ctx, e, beside, false)
	if err == nil {
		err = x.attributes(e, beside)
	}
	if err == nil {
		err = unix.Renameat(x.dir, beside, x.dir, name)
	}
	if err != nil {
		unix.Unlinkat(x.dir, beside, 0) // it may not be there
	}
	return err
}

// hollow makes a hole where there is none, of whole blocks: end begins one, or the file ended there.
func hollow(f *os.File, start, end int64) error {
	if start >= end {
		return nil
	}
	end = (end + Block - 1) / Block * Block
	if data, _, err := NextData(f, start, end); errors.Is(err, io.EOF) || err == nil && data >= end {
		return nil
	} else if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start)
}

// write writes the blocks of p that differ from those in f, which had old bytes.
func (x *Place) write(f *os.File, p []byte, off, old int64) error {
	if off >= old {
		_, err := f.WriteAt(p, off)
		return err
	}
	n, err := f.ReadAt(x.buf[:len(p)], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for at := 0; at < len(p); at += Block {
		b := p[at:min(at+Block, len(p))]
		if at+len(b) <= n && bytes.Equal(b, x.buf[at:at+len(b)]) {
			continue
		}
		if _, err := f.WriteAt(b, off+int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// attributes makes those that differ the same, in an order in which none undoes another: a new owner takes
// capabilities and set-ID bits away, a new mode changes an access list.
func (x *Place) attributes(e *Entry, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(x.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !e.Is(unix.S_IFDIR) {
		x.claim(st.Ino)
	}
	owner, mode := int(st.Uid) != e.UID || int(st.Gid) != e.GID, e.Mode
	if owner {
		err := unix.Fchownat(x.dir, name, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EPERM) {
			x.lose("its owner is lost, as only root gives files away: it is who writes it", e.Path)
			if err = nil; !e.Is(unix.S_IFDIR) {
				mode &^= unix.S_ISUID | unix.S_ISGID // to that owner's rights, and no other's
			}
		}
		if err != nil {
			return err
		}
	}
	if !e.Is(unix.S_IFLNK) && (owner || st.Mode != mode) {
		if err := unix.Fchmodat(x.dir, name, mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := x.extended(e, x.in(name)); err != nil {
		return err
	}
	if st.Mtim == e.Mtime {
		return nil
	}
	return unix.UtimesNanoAt(x.dir, name, []unix.Timespec{e.Mtime, e.Mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

func (x *Place) extended(e *Entry, path string) error {
	have, err := XattrsOf(path)
	if err != nil {
		return err
	}
	for name := range have {
		if _, ok := e.Xattrs[name]; !ok {
			if err := unix.Lremovexattr(path, name); err != nil && name != "security.selinux" { // which the host's policy gives
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if value, ok := have[name]; ok && value == e.Xattrs[name] {
			continue
		}
		if err := unix.Lsetxattr(path, name, []byte(e.Xattrs[name]), 0); err != nil {
			x.lose(fmt.Sprintf("attribute %s is lost: %v", name, err), e.Path)
		}
	}
	return nil
}

// Close gives folders their attributes, and waits until all is on the disk. Again it does nothing.
func (x *Place) Close() (err error) {
	if x.root < 0 {
		return nil
	}
	for _, p := range slices.Backward(slices.Sorted(maps.Keys(x.folders))) { // what lies in one first: it may not be entered then
		if err = x.enter(path.Dir(p)); err == nil {
			err = x.attributes(x.folders[p], path.Base(p))
		}
		if err != nil {
			err = fmt.Errorf("write %q: %w", p, err)
			break
		}
	}
	synced := os.NewSyscallError("syncfs", syncfs(x.root))
	x.Leave()
	root := x.root
	x.root, x.dir = -1, -1
	return errors.Join(err, synced, unix.Close(root))
}

func syncfs(fd int) error {
	f, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // fd only names it
	if err != nil {
		return err
	}
	defer unix.Close(f)
	return unix.Syncfs(f)
}
