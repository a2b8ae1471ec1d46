package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
)

const (
	// kept is how long the kernel may keep what it was told: a tree never changes.
	kept = 24 * time.Hour
	// readMax is the largest read, as the kernel has it.
	readMax = 1 << 20
	// sector is what the kernel counts blocks in, in bytes.
	sector = 512
)

// files is a tree as the kernel sees it.
type files struct {
	tree   *tree.Tree
	log    *slog.Logger
	firsts sync.Map // of uint64, a number, to *inode: the folders that first names of files lie in, to read them once
}

// inode is one thing of a tree.
type inode struct {
	fs.Inode
	files *files
	file  tree.File
	ino   uint64

	mu sync.Mutex  // guards what follows, which is read at most once
	in []tree.File // what is in a folder
}

var (
	_ fs.NodeLookuper    = (*inode)(nil)
	_ fs.NodeReaddirer   = (*inode)(nil)
	_ fs.NodeGetattrer   = (*inode)(nil)
	_ fs.NodeReadlinker  = (*inode)(nil)
	_ fs.NodeOpener      = (*inode)(nil)
	_ fs.NodeReader      = (*inode)(nil)
	_ fs.NodeGetxattrer  = (*inode)(nil)
	_ fs.NodeListxattrer = (*inode)(nil)
	_ fs.NodeStatfser    = (*inode)(nil)
)

// list returns what is in a folder.
func (n *inode) list(ctx context.Context) ([]tree.File, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.in == nil {
		in, err := n.files.tree.List(ctx, n.file)
		if err != nil {
			return nil, n.failed("list", err)
		}
		n.in = in
	}
	return n.in, 0
}

// failed says what a guest is told of an error.
func (n *inode) failed(what string, err error) syscall.Errno {
	if errors.Is(err, context.Canceled) {
		return syscall.EINTR
	}
	n.files.log.Warn("a mounted tree can't be read", "what", what, "name", n.file.Name, "err", err)
	return syscall.EIO
}

// entry returns what has a name in a folder, and its place.
func (n *inode) entry(ctx context.Context, name string) (f tree.File, place int, errno syscall.Errno) {
	in, errno := n.list(ctx)
	if errno != 0 {
		return f, 0, errno
	}
	place, ok := slices.BinarySearchFunc(in, []byte(name), func(f tree.File, name []byte) int { return bytes.Compare(f.Name, name) })
	if !ok {
		return f, 0, syscall.ENOENT
	}
	return in[place], place, 0
}

// find is entry, and the number; of another name of a file it is that file.
func (n *inode) find(ctx context.Context, name string) (f tree.File, ino uint64, errno syscall.Errno) {
	f, place, errno := n.entry(ctx, name)
	if errno != 0 || len(f.Same) == 0 {
		return f, n.file.Number(place), errno
	}
	return n.first(ctx, string(f.Same))
}

// first finds a file by the path that it has in the tree.
func (n *inode) first(ctx context.Context, p string) (f tree.File, ino uint64, errno syscall.Errno) {
	at, left := n.Root().Operations().(*inode), strings.Split(p, "/")
	for ; len(left) > 1; left = left[1:] {
		f, place, errno := at.entry(ctx, left[0])
		if errno != 0 || !f.Is(tree.Folder) {
			return f, 0, n.failed("find the first name of "+path.Base(p), content.ErrCorrupt)
		}
		in, _ := n.files.firsts.LoadOrStore(at.file.Number(place), &inode{files: n.files, file: f, ino: at.file.Number(place)})
		at = in.(*inode)
	}
	f, place, errno := at.entry(ctx, left[0])
	if errno != 0 || f.Is(tree.Folder) || len(f.Same) > 0 {
		return f, 0, n.failed("find the first name of "+path.Base(p), content.ErrCorrupt)
	}
	return f, at.file.Number(place), 0
}

// Lookup implements fs.NodeLookuper.
func (n *inode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	f, ino, errno := n.find(ctx, name)
	if errno != 0 {
		return nil, errno
	}
	child := &inode{files: n.files, file: f, ino: ino}
	child.attributes(&out.Attr)
	return n.NewInode(ctx, child, fs.StableAttr{Mode: f.Mode & syscall.S_IFMT, Ino: ino}), 0
}

// Readdir implements fs.NodeReaddirer.
func (n *inode) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	in, errno := n.list(ctx)
	if errno != 0 {
		return nil, errno
	}
	out := make([]fuse.DirEntry, len(in))
	for i, f := range in {
		out[i] = fuse.DirEntry{Name: string(f.Name), Mode: f.Mode & syscall.S_IFMT, Ino: n.file.Number(i)}
		if len(f.Same) > 0 {
			if _, out[i].Ino, errno = n.first(ctx, string(f.Same)); errno != 0 {
				return nil, errno
			}
		}
	}
	return fs.NewListDirStream(out), 0
}

// Getattr implements fs.NodeGetattrer.
func (n *inode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attributes(&out.Attr)
	out.SetTimeout(kept)
	return 0
}

func (n *inode) attributes(out *fuse.Attr) {
	f := &n.file
	out.Ino, out.Mode, out.Nlink, out.Rdev = n.ino, f.Mode, max(1, f.Links), uint32(f.Device)
	out.Size, out.Blocks, out.Blksize = uint64(f.Size), uint64(f.Data+sector-1)/sector, tree.ChunkSize
	out.Owner = fuse.Owner{Uid: f.UID, Gid: f.GID}
	switch {
	case f.Is(tree.Folder):
		out.Size, out.Blocks = uint64(f.Own), 0
	case f.Is(tree.Link):
		out.Size = uint64(len(f.Target))
	}
	changed := f.Changed()
	out.SetTimes(&changed, &changed, &changed)
}

// Readlink implements fs.NodeReadlinker.
func (n *inode) Readlink(context.Context) ([]byte, syscall.Errno) { return n.file.Target, 0 }

// Open implements fs.NodeOpener.
func (n *inode) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read implements fs.NodeReader.
func (n *inode) Read(ctx context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	m, err := n.files.tree.ReadAt(ctx, n.file, p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, n.failed("read", err)
	}
	return fuse.ReadResultData(p[:m]), 0
}

// Getxattr implements fs.NodeGetxattrer.
func (n *inode) Getxattr(_ context.Context, name string, p []byte) (uint32, syscall.Errno) {
	for _, x := range n.file.Xattrs {
		if string(x.Name) == name {
			return filled(p, x.Value)
		}
	}
	return 0, fs.ENOATTR
}

// Listxattr implements fs.NodeListxattrer.
func (n *inode) Listxattr(_ context.Context, p []byte) (uint32, syscall.Errno) {
	var names []byte
	for _, x := range n.file.Xattrs {
		names = append(append(names, x.Name...), 0)
	}
	return filled(p, names)
}

// filled copies what was asked for; p without room asks how long that is.
func filled(p, value []byte) (uint32, syscall.Errno) {
	if len(p) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(p, value)), 0
}

// Statfs implements fs.NodeStatfser.
func (n *inode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	sums := n.files.tree.Sums()
	out.Bsize, out.Frsize, out.NameLen = tree.ChunkSize, tree.ChunkSize, 255
	out.Blocks = uint64(sums.Data+tree.ChunkSize-1) / tree.ChunkSize
	out.Files = sums.Files + sums.Folders + sums.Others
	return 0
}

// killedEvery is how often it is looked whether somebody is killed who waits, and was sent a signal: the kernel tells of the first.
const killedEvery = 100 * time.Millisecond

// unlessKilled has a read go on for a caller who was sent a signal and handles it, as on a disk: programs know of no file that
// can't be opened for that. It ends once the caller is killed, or nothing is shown any more.
func unlessKilled(ctx context.Context, ended <-chan struct{}) (context.Context, context.CancelFunc) {
	on, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		defer end()
		for tick := time.Tick(killedEvery); !isKilled(ctx); {
			select {
			case <-tick:
			case <-ended:
				return
			case <-on.Done():
				return
			}
		}
	})
	return on, func() { stop(); end() }
}

// isKilled reports whether who asks is to end at once; also where that can't be told.
func isKilled(ctx context.Context) bool {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", caller.Pid)) // of the thread
	_, pending, _ := strings.Cut(string(status), "\nSigPnd:")
	var signals uint64
	_, failed := fmt.Sscanf(pending, "%x", &signals)
	return err != nil || failed != nil || signals&(1<<(syscall.SIGKILL-1)) != 0
}

// show has the kernel show a tree at a folder; end unmounts it, by force from under its users, and gone is closed once it
// is unmounted, whoever did it. What an earlier process has left there goes.
func show(t *tree.Tree, name, dir string, log *slog.Logger) (end func(force bool) error, gone <-chan struct{}, err error) {
	if _, err := os.Stat(dir); errors.Is(err, syscall.ENOTCONN) {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			return nil, nil, fmt.Errorf("unmount what an earlier process has left at %s: %w", dir, err)
		}
	}
	ended := make(chan struct{})
	patient := t.Over(func(ctx context.Context, p []byte, at int64) error {
		ctx, end := unlessKilled(ctx, ended)
		defer end()
		return t.ReadStream(ctx, p, at)
	})
	timeout := kept
	options := &fs.Options{
		EntryTimeout: &timeout, AttrTimeout: &timeout, NegativeTimeout: &timeout, NullPermissions: true,
		RootStableAttr: &fs.StableAttr{Ino: tree.FirstNumber, Mode: syscall.S_IFDIR},
		MountOptions: fuse.MountOptions{
			AllowOther: os.Geteuid() == 0, Options: []string{"default_permissions"}, MaxWrite: readMax, MaxReadAhead: readMax, FsName: name, Name: "grange", DirectMount: true,
			DirectMountFlags: syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_RDONLY,
		},
	}
	server, err := fs.Mount(dir, &inode{files: &files{tree: patient, log: log}, file: t.Top(), ino: tree.FirstNumber}, options)
	if err != nil {
		return nil, nil, err
	}
	go func() {
		server.Wait()
		close(ended)
	}()
	return func(force bool) error {
		select {
		case <-ended: // what is there now is not ours
			return nil
		default:
		}
		err := server.Unmount()
		switch {
		case err == nil:
			<-ended
		case force: // its users fail once this process ends
			err = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
		return err
	}, ended, nil
}
