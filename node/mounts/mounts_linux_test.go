package mounts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func shell(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// planted is the tree of a folder, whose chunks are in memory, and whose reads are counted.
func planted(t *testing.T, dir string, reads ...*atomic.Int64) *tree.Tree {
	t.Helper()
	files, err := convert.OpenFiles(t.Context(), convert.Options{Path: dir, Temp: t.TempDir()})
	must(t, err)
	defer files.Close()
	return written(t, func(w *tree.Writer) error { _, err := files.Plant(t.Context(), w); return err }, reads...)
}

// written is the tree that somebody writes, and closes.
func written(t *testing.T, write func(*tree.Writer) error, reads ...*atomic.Int64) *tree.Tree {
	t.Helper()
	var chunks [][]byte
	root := content.Root{Kind: content.RootTree, ChunkSize: tree.ChunkSize}
	w, err := tree.NewWriter(tree.Config{Codec: content.NewCodec(), Add: func(_ context.Context, _ uint64, raw []byte) error {
		chunks, root.Count, root.Size = append(chunks, bytes.Clone(raw)), root.Count+1, root.Size+int64(len(raw))
		return nil
	}})
	must(t, err, write(w))
	of, err := tree.Open(t.Context(), content.NewCodec(), root, func(_ context.Context, index uint64, off int, p []byte) error {
		copy(p, chunks[index][off:][:len(p)])
		for _, n := range reads {
			n.Add(1)
		}
		return nil
	})
	must(t, err)
	return of
}

// source is a folder with all that a file system of Linux has.
func source(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	shell(t, dir, `
		mkdir -p a/b "with space" empty; echo hello >a/b/hello; ln a/b/hello a/again; ln -s ../a/b/hello empty/link
		head -c 3000000 /dev/urandom >large; truncate -s 5M sparse; printf x | dd of=sparse bs=1 seek=3000000 conv=notrunc status=none
		mknod pipe p; mknod null c 1 3; touch $'not\xff utf8'; chmod 4751 a/b/hello; chmod 1777 empty; chown 12:34 large
		mkdir many; for i in $(seq 3000); do echo $i >many/f$i; done
		touch -d '1969-01-02 03:04:05.6' a; touch -h -d '2044-01-02 03:04:05.123456789' empty/link`)
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_bind_service+ep
	must(t, unix.Lsetxattr(filepath.Join(dir, "large"), "user.note", []byte("words"), 0), unix.Lsetxattr(filepath.Join(dir, "sparse"), "security.capability", capability, 0),
		unix.Lsetxattr(filepath.Join(dir, "empty/link"), "trusted.note", []byte{0, 255}, 0))
	return dir
}

// sumOf is that of all that tar finds in a folder.
func sumOf(t *testing.T, dir string) string {
	t.Helper()
	return shell(t, dir, `tar --sort=name --xattrs --xattrs-include='*' --acls --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime,exthdr.name=%d/%f -cf - . | sha256sum`)
}

// headOf is a head that a name tells from others.
func headOf(name string) pack.Head {
	return pack.Head{Root: content.Root{Size: 1, ChunkSize: tree.ChunkSize, Kind: content.RootTree, Count: 1, Map: content.Sum([]byte(name))}}
}

func newMounts(t *testing.T, file string, of *tree.Tree) *Mounts {
	t.Helper()
	m, err := New(Config{File: file, Now: time.Now, Log: slog.New(slog.DiscardHandler), Open: func(_ context.Context, name string) (*tree.Tree, pack.Head, error) {
		if of == nil || name != "debian" {
			return nil, pack.Head{}, fmt.Errorf("%q: %w", name, content.ErrNotFound)
		}
		return of, headOf(name), nil
	}})
	must(t, err)
	return m
}

// TestMountedIsAsTheSource: whoever reads a mounted tree reads what was planted, and can change nothing.
func TestMountedIsAsTheSource(t *testing.T) {
	src, dir := source(t), t.TempDir()
	m := newMounts(t, filepath.Join(t.TempDir(), "mounts.json"), planted(t, src))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	one, err := m.Mount(t.Context(), "debian", dir)
	must(t, err)
	if again, err := m.Mount(t.Context(), "debian", dir+"/"); err != nil || again != one {
		t.Errorf("again: %+v, %v", again, err)
	}
	if got, want := sumOf(t, dir), sumOf(t, src); got != want {
		t.Errorf("tar finds other things\n%s", shell(t, dir, fmt.Sprintf(`list() { tar --sort=name --xattrs --xattrs-include='*' --numeric-owner --format=posix -cf - . | tar --xattrs --xattrs-include='*' -tvvf -; }
			list >/tmp/is; cd %s; list | diff - /tmp/is | head -20`, src)))
	}
	var one1, two2 syscall.Stat_t
	must(t, syscall.Stat(filepath.Join(dir, "a/again"), &one1), syscall.Stat(filepath.Join(dir, "a/b/hello"), &two2))
	if one1.Ino != two2.Ino {
		t.Error("two names of a file are two files")
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write: %v", err)
	}
	readsAnywhere(t, filepath.Join(dir, "large"), filepath.Join(src, "large"))
	readsAnywhere(t, filepath.Join(dir, "sparse"), filepath.Join(src, "sparse"))
	stop()
	must(t, <-ended)
	if in, err := os.ReadDir(dir); err != nil || len(in) > 0 {
		t.Errorf("after the end: %v, %v", in, err)
	}
}

func readsAnywhere(t *testing.T, path, as string) {
	t.Helper()
	want, err := os.ReadFile(as)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	for range 200 {
		off := rand.IntN(len(want))
		p := make([]byte, 1+rand.IntN(200_000))
		n, _ := f.ReadAt(p, int64(off))
		if w := want[off:min(len(want), off+len(p))]; sha256.Sum256(p[:n]) != sha256.Sum256(w) {
			t.Fatalf("%s: %d bytes at %d are others", path, len(p), off)
		}
	}
}

// TestMountsAreRemembered: a start brings them back, once their tree can be read, also over what a process that was
// killed has left; and what is in use stays.
func TestMountsAreRemembered(t *testing.T) {
	src, dir, file := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "mounts.json")
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("words"), 0o644))
	first := newMounts(t, file, planted(t, src))
	_, err := first.Mount(t.Context(), "debian", dir)
	must(t, err, first.close())
	away := newMounts(t, file, nil)
	if all := away.List(); len(all) != 1 || all[0].Error == "" {
		t.Fatalf("%+v", all)
	}
	away.again(t.Context())
	if all := away.List(); all[0].Error == "" {
		t.Errorf("without its tree: %+v", all)
	}
	m := newMounts(t, file, planted(t, src))
	m.again(t.Context())
	if all := m.List(); len(all) != 1 || all[0].Error != "" {
		t.Errorf("%+v", all)
	}
	f, err := os.Open(filepath.Join(dir, "file"))
	must(t, err)
	if err := m.Unmount(t.Context(), dir); !errors.Is(err, content.ErrConflict) {
		t.Errorf("while it is read: %v", err)
	}
	must(t, f.Close(), m.Unmount(t.Context(), dir), m.Unmount(t.Context(), dir))
	if all := newMounts(t, file, nil).List(); len(all) > 0 {
		t.Errorf("after the end: %+v", all)
	}
}

// TestUnmountedByOthers: what somebody else has unmounted is mounted again, and can be ended.
func TestUnmountedByOthers(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("words"), 0o644))
	m := newMounts(t, filepath.Join(t.TempDir(), "mounts.json"), planted(t, src))
	_, err := m.Mount(t.Context(), "debian", dir)
	must(t, err, syscall.Unmount(dir, 0))
	<-m.all[0].gone
	_, err = m.Mount(t.Context(), "debian", dir)
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "words" {
		t.Errorf("mounted again it has %q, %v", b, err)
	}
	must(t, syscall.Unmount(dir, 0))
	<-m.all[0].gone
	must(t, m.Unmount(t.Context(), dir))
	if all := m.List(); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

// TestFoldersOfFirstNames: a folder with other names of what lies in a large one is listed by reading that once.
func TestFoldersOfFirstNames(t *testing.T) {
	const many = 200
	src, reads := t.TempDir(), atomic.Int64{}
	must(t, os.MkdirAll(filepath.Join(src, "a/store"), 0o755), os.Mkdir(filepath.Join(src, "names"), 0o755))
	for i := range many {
		first := filepath.Join(src, "a/store", strconv.Itoa(i))
		must(t, os.WriteFile(first, nil, 0o644), os.Link(first, filepath.Join(src, "names", strconv.Itoa(i))))
	}
	top := &inode{files: &files{tree: planted(t, src, &reads), log: slog.New(slog.DiscardHandler)}, ino: tree.FirstNumber}
	top.file = top.files.tree.Top()
	fs.NewNodeFS(top, &fs.Options{})
	names, place, errno := top.entry(t.Context(), "names")
	if errno != 0 {
		t.Fatal(errno)
	}
	in := &inode{files: top.files, file: names, ino: top.file.Number(place)}
	top.AddChild("names", top.NewInode(t.Context(), in, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: in.ino}), true)
	reads.Store(0)
	if out, errno := in.Readdir(t.Context()); errno != 0 {
		t.Error(errno)
	} else {
		out.Close()
	}
	if got := reads.Load(); got > 10 {
		t.Errorf("%d reads of the tree for %d names", got, many)
	}
}

// TestWhatCantBeMounted says so, and mounts nothing.
func TestWhatCantBeMounted(t *testing.T) {
	own, full := t.TempDir(), t.TempDir()
	m := newMounts(t, filepath.Join(own, "mounts.json"), nil)
	must(t, os.Symlink(own, filepath.Join(full, "link")), os.Mkdir(filepath.Join(own, "volumes"), 0o700), os.WriteFile(filepath.Join(full, "file"), nil, 0o600))
	for _, x := range []struct {
		name, dir string
		want      error
	}{{"debian", "relative", content.ErrInvalid}, {"debian", filepath.Join(full, "nowhere"), content.ErrInvalid}, {"debian", full, content.ErrConflict}, {"debian", filepath.Join(full, "link/volumes"), content.ErrInvalid}, {"other", t.TempDir(), content.ErrNotFound}} {
		if _, err := m.Mount(t.Context(), x.name, x.dir); !errors.Is(err, x.want) {
			t.Errorf("%s at %s: %v, want %v", x.name, x.dir, err, x.want)
		}
	}
	if all := m.List(); len(all) > 0 {
		t.Errorf("%+v", all)
	}
}

// TestKilledWhileItMounts: what was remembered, and is not there, is there after the next start.
func TestKilledWhileItMounts(t *testing.T) {
	src, dir, file := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "mounts.json")
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("words"), 0o644))
	of, seen := planted(t, src), ""
	m := newMounts(t, file, of)
	m.cfg.Open = func(context.Context, string) (*tree.Tree, pack.Head, error) { // a crash here leaves this
		b, err := os.ReadFile(file)
		seen = string(b)
		return of, headOf("debian"), err
	}
	_, err := m.Mount(t.Context(), "debian", dir)
	must(t, err, m.Unmount(t.Context(), dir), os.WriteFile(file, []byte(seen), 0o600))
	again := newMounts(t, file, of)
	again.again(t.Context())
	if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "words" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	must(t, again.close())
}

// TestBadTreesMounted: names of files that lie nowhere can't be read, links in a circle lead nowhere, and a device is none here.
func TestBadTreesMounted(t *testing.T) {
	dir := t.TempDir()
	of := written(t, func(w *tree.Writer) error {
		err := w.Enter(tree.Entry{Mode: tree.Folder | 0o755})
		for _, e := range []tree.Entry{
			{Name: []byte("a"), Mode: tree.Link | 0o777, Target: []byte("b")}, {Name: []byte("b"), Mode: tree.Link | 0o777, Target: []byte("a")}, {Name: []byte("null"), Mode: tree.CharDevice | 0o666, Device: unix.Mkdev(1, 3)},
		} {
			err = errors.Join(err, w.Add(t.Context(), e, nil, nil))
		}
		err = errors.Join(err, w.Enter(tree.Entry{Name: []byte("twins"), Mode: tree.Folder | 0o755}))
		for i, same := range []string{"../secret", "/etc/passwd", "a/etc/passwd", "nowhere", "twins", "twins/5"} {
			err = errors.Join(err, w.Add(t.Context(), tree.Entry{Name: []byte(strconv.Itoa(i)), Mode: tree.Regular | 0o644, Same: []byte(same)}, nil, nil))
		}
		err = errors.Join(err, w.Leave(), w.Leave())
		if err == nil {
			_, err = w.Close(t.Context())
		}
		return err
	})
	m := newMounts(t, filepath.Join(t.TempDir(), "mounts.json"), of)
	_, err := m.Mount(t.Context(), "debian", dir)
	must(t, err)
	for name, want := range map[string]error{"a": syscall.ELOOP, "null": syscall.EACCES, "twins/0": syscall.EIO, "twins/1": syscall.EIO, "twins/2": syscall.EIO, "twins/3": syscall.EIO, "twins/4": syscall.EIO, "twins/5": syscall.EIO, "twins/6": syscall.ENOENT} {
		if _, err := os.ReadFile(filepath.Join(dir, name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	must(t, m.Unmount(t.Context(), dir))
}

// TestBelowWhatIsShown: what merely lies on a file system of that kind, as all of a host's may, is not shown itself.
func TestBelowWhatIsShown(t *testing.T) {
	src, dir := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(src, "below"), 0o755))
	m := newMounts(t, filepath.Join(t.TempDir(), "mounts.json"), planted(t, src))
	_, err := m.Mount(t.Context(), "debian", dir)
	must(t, err)
	over := t.TempDir()
	at, upper, work := filepath.Join(over, "at"), filepath.Join(over, "upper"), filepath.Join(over, "work")
	must(t, os.Mkdir(at, 0o755), os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755), Overlay(at, dir, upper, work))
	if !IsServed(dir) || !IsOverlaid(at) {
		t.Errorf("%t, %t where they are", IsServed(dir), IsOverlaid(at))
	}
	for _, at := range []string{filepath.Join(dir, "below"), filepath.Join(at, "below"), over} {
		if IsServed(at) || IsOverlaid(at) {
			t.Errorf("%s: served %t, overlaid %t", at, IsServed(at), IsOverlaid(at))
		}
	}
	must(t, Detach(at), m.Unmount(t.Context(), dir))
}
