package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/grangemesh/grange/origin/convert/files"
	"golang.org/x/sys/unix"
)

// mounted is a file system that the kernel writes. It is mounted nowhere: a
// descriptor leads to it, so that nothing stays behind whatever happens to us.
type mounted struct {
	loop   *os.File
	root   int
	dir    int    // the folder used last
	dirOf  string // and its path
	lost   losses
	buf    []byte
	inodes map[uint64]bool // that were written, and are no other entry's
	// folders are finished last: what is put into one changes its time.
	folders map[string]*files.Entry
}

// mountable says why no file system can be mounted here; nil when one can.
func mountable() error {
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	f, err := freeLoop()
	if err == nil {
		err = f.Close()
	}
	return errors.Join(err, unix.Close(fd))
}

func freeLoop() (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
	}
	return os.OpenFile("/dev/loop"+strconv.Itoa(number), os.O_RDWR, 0)
}

// attach gives a file a loop device, which goes with its last user.
func attach(f *os.File) (*os.File, error) {
	for {
		loop, err := freeLoop()
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			return loop, nil
		}
		err = errors.Join(os.NewSyscallError("LOOP_CONFIGURE", err), loop.Close())
		if !errors.Is(err, unix.EBUSY) { // another was quicker
			return nil, err
		}
	}
}

func mount(ctx context.Context, f *os.File, lost losses) (*mounted, error) {
	loop, err := attach(f)
	if err != nil {
		return nil, err
	}
	fail := func(what string, err error) (*mounted, error) {
		return nil, errors.Join(fmt.Errorf("mount: %w", os.NewSyscallError(what, err)), loop.Close())
	}
	fd, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("fsopen", err)
	}
	defer unix.Close(fd)
	err = errors.Join(unix.FsconfigSetString(fd, "source", loop.Name()), unix.FsconfigSetFlag(fd, "discard"), unix.FsconfigCreate(fd))
	if err != nil {
		return fail("fsconfig", err)
	}
	root, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOATIME|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fail("fsmount", err)
	}
	m := &mounted{loop: loop, root: root, dir: -1, lost: lost, buf: make([]byte, files.ReadAtOnce), inodes: map[uint64]bool{}, folders: map[string]*files.Entry{}}
	if err := m.enter("."); err != nil {
		return nil, errors.Join(err, m.unmount(ctx))
	}
	return m, nil
}

// enter makes dir the folder that is worked in. Links of the tree lead to places in the tree.
func (m *mounted) enter(dir string) error {
	if m.dir >= 0 && m.dirOf == dir {
		return nil
	}
	fd, err := unix.Openat2(m.root, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return &fs.PathError{Op: "open folder", Path: dir, Err: err}
	}
	if m.dir >= 0 {
		unix.Close(m.dir)
	}
	m.dir, m.dirOf = fd, dir
	return nil
}

// in is a path to a name in the folder that is worked in, for calls that know paths only.
func (m *mounted) in(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", m.dir, name) }

// lostAndFound is the file system's own.
const lostAndFound = "lost+found"

func (m *mounted) prune(facts map[string]fact) error {
	if err := m.enter("."); err != nil {
		return err
	}
	top := m.in(".")
	return filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == top {
			return err
		}
		name, err := filepath.Rel(top, p)
		if err != nil || name == lostAndFound {
			return err
		}
		if f, ok := facts[name]; ok && f.folder == d.IsDir() {
			return nil
		}
		if err := os.RemoveAll(p); err != nil || !d.IsDir() {
			return err
		}
		return fs.SkipDir
	})
}

func (m *mounted) put(ctx context.Context, e *files.Entry) error {
	err := m.place(ctx, e)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%q has no place in the tree: %w", e.Path, err)
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", e.Path, err)
	}
	return nil
}

func (m *mounted) place(ctx context.Context, e *files.Entry) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := path.Base(e.Path)
	if err := m.enter(path.Dir(e.Path)); err != nil {
		return err
	}
	var old unix.Stat_t
	err := unix.Fstatat(m.dir, name, &old, unix.AT_SYMLINK_NOFOLLOW)
	exists := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if exists && !m.mayStay(e, name, &old) {
		exists = false
		if err := os.RemoveAll(m.in(name)); err != nil {
			return err
		}
	}
	switch {
	case e.Same != "":
		if exists {
			return nil
		}
		return unix.Linkat(m.root, e.Same, m.dir, name, 0)
	case e.Is(unix.S_IFDIR):
		m.folders[e.Path] = e
		if exists {
			return nil
		}
		return unix.Mkdirat(m.dir, name, 0o700)
	case e.Is(unix.S_IFREG):
		err = m.content(ctx, e, name, exists)
	case exists:
	case e.Is(unix.S_IFLNK):
		err = unix.Symlinkat(e.Target, m.dir, name)
	default:
		err = unix.Mknodat(m.dir, name, e.Mode, int(e.Device))
	}
	if err != nil {
		return err
	}
	return m.attributes(e, name)
}

// mayStay tells whether what is there can be made into e: it is of that kind, and no other entry's.
func (m *mounted) mayStay(e *files.Entry, name string, old *unix.Stat_t) bool {
	switch {
	case e.Same != "":
		var same unix.Stat_t
		return unix.Fstatat(m.root, e.Same, &same, unix.AT_SYMLINK_NOFOLLOW) == nil && same.Ino == old.Ino
	case old.Mode&unix.S_IFMT != e.Mode&unix.S_IFMT:
		return false
	case e.Is(unix.S_IFDIR):
		return true
	case m.inodes[old.Ino]:
		return false
	case e.Is(unix.S_IFLNK):
		target, err := os.Readlink(m.in(name))
		return err == nil && target == e.Target
	}
	return e.Is(unix.S_IFREG) || old.Rdev == e.Device
}

// content writes what differs from what is there, in place.
func (m *mounted) content(ctx context.Context, e *files.Entry, name string, exists bool) error {
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !exists {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Openat(m.dir, name, flags, 0o600)
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
		return m.write(f, p, off, old)
	})
	if err == nil {
		err = hollow(f, at, old)
	}
	if err == nil && old != e.Size {
		err = f.Truncate(e.Size)
	}
	return err
}

// hollow makes a hole where there is none, of whole blocks: end begins one, or the file ended there.
func hollow(f *os.File, start, end int64) error {
	if start >= end {
		return nil
	}
	end = (end + files.Block - 1) / files.Block * files.Block
	if data, _, err := files.NextData(f, start, end); errors.Is(err, io.EOF) || err == nil && data >= end {
		return nil
	} else if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start)
}

// write writes the blocks of p that differ from those in f, which had old bytes.
func (m *mounted) write(f *os.File, p []byte, off, old int64) error {
	if off >= old {
		_, err := f.WriteAt(p, off)
		return err
	}
	n, err := f.ReadAt(m.buf[:len(p)], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for at := 0; at < len(p); at += files.Block {
		b := p[at:min(at+files.Block, len(p))]
		if at+len(b) <= n && bytes.Equal(b, m.buf[at:at+len(b)]) {
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
func (m *mounted) attributes(e *files.Entry, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(m.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !e.Is(unix.S_IFDIR) {
		m.inodes[st.Ino] = true
	}
	owner := int(st.Uid) != e.UID || int(st.Gid) != e.GID
	if owner {
		if err := unix.Fchownat(m.dir, name, e.UID, e.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if !e.Is(unix.S_IFLNK) && (owner || st.Mode != e.Mode) {
		if err := unix.Fchmodat(m.dir, name, e.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if err := m.extended(e, m.in(name)); err != nil {
		return err
	}
	if st.Mtim == e.Mtime {
		return nil
	}
	return unix.UtimesNanoAt(m.dir, name, []unix.Timespec{e.Mtime, e.Mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

func (m *mounted) extended(e *files.Entry, path string) error {
	have, err := files.XattrsOf(path)
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
			m.lost.add(fmt.Sprintf("attribute %s is lost: %v", name, err), e.Path)
		}
	}
	return nil
}

// close finishes the folders, and waits until all is in the file.
func (m *mounted) close(ctx context.Context) error {
	if m.root < 0 {
		return nil
	}
	var err error
	for _, p := range slices.Sorted(maps.Keys(m.folders)) {
		if err = m.enter(path.Dir(p)); err == nil {
			err = m.attributes(m.folders[p], path.Base(p))
		}
		if err != nil {
			err = fmt.Errorf("write %q: %w", p, err)
			break
		}
	}
	return errors.Join(err, m.unmount(ctx))
}

// unmountMax bounds the wait for a file system that others may look at for a moment.
const unmountMax = time.Minute

func (m *mounted) unmount(ctx context.Context) error {
	synced := os.NewSyscallError("syncfs", syncfs(m.root))
	if m.dir >= 0 {
		unix.Close(m.dir)
	}
	unix.Close(m.root)
	m.root, m.dir = -1, -1
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountMax)
	defer cancel()
	tick := time.Tick(10 * time.Millisecond)
	for { // the device can be had alone once it is no file system's
		fd, err := unix.Open(m.loop.Name(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
			return errors.Join(synced, m.loop.Sync(), m.loop.Close())
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return errors.Join(synced, fmt.Errorf("unmount: %w", err), m.loop.Close())
		}
	}
}

func syncfs(fd int) error {
	f, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // fd only names it
	if err != nil {
		return err
	}
	defer unix.Close(f)
	return unix.Syncfs(f)
}
