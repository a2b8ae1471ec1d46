package convert

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
	"github.com/grangemesh/grange/simulations/soak"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// noise is bytes that a seed decides.
func noise(seed string, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b)
	return b
}

// sparse writes a file of a size with a block of data at each place.
func sparse(t *testing.T, path string, size int64, at ...int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err, f.Truncate(size))
	for _, off := range at {
		_, err := f.WriteAt(noise(path, files.Block), off)
		must(t, err)
	}
	must(t, f.Close())
}

func touch(t *testing.T, path string, at time.Time) {
	t.Helper()
	ts := unix.NsecToTimespec(at.UnixNano())
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// access is an access list with uid 1000, as Linux keeps it.
const access = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"

// capability is CAP_NET_RAW, permitted and effective.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// wonders makes a tree of all that a file system can hold.
func wonders(t *testing.T, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, b []byte) { must(t, os.WriteFile(in(name), b, 0o644)) }
	for name, mode := range map[string]uint32{"tmp": 0o1777, "private": 0o700, "shared": 0o2775, "empty": 0o755, "a\"b c": 0o755, "<12>": 0o711} {
		must(t, unix.Mkdir(in(name), 0o700), unix.Chmod(in(name), mode))
	}
	write("private/secret", []byte("secret"))
	write("<12>/file", []byte("odd"))
	write("a\"b c/file", []byte("odd"))
	write(strings.Repeat("n", 255), nil)
	write("su", noise("su", 70000))
	must(t, unix.Chown(in("su"), 1000, 1<<20+1), unix.Chmod(in("su"), 0o6755))
	write("ping", noise("ping", 5000))
	must(t, unix.Setxattr(in("ping"), "security.capability", []byte(capability), 0), unix.Setxattr(in("ping"), "user.note", bytes.Repeat([]byte{0, 'x', '\n'}, 50), 0))
	write("listed", []byte("acl"))
	must(t, unix.Setxattr(in("listed"), "system.posix_acl_access", []byte(access), 0), unix.Setxattr(in("shared"), "system.posix_acl_default", []byte(access), 0))
	write("shared/inside", []byte("x"))
	sparse(t, in("lastlog"), 64<<20+5, 0, 20<<20, 64<<20-files.Block)
	sparse(t, in("hole"), 3<<20)
	write("links", []byte("two names"))
	must(t, os.Link(in("links"), in("private/second")), os.Symlink("/etc/passwd", in("absolute")), os.Symlink(strings.Repeat("long/", 30), in("long")), os.Link(in("long"), in("long2")))
	must(t, unix.Lchown(in("absolute"), 7, 8))
	must(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mknod(in("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 300))), unix.Mkfifo(in("pipe"), 0o640))
	touch(t, in("su"), time.Date(2040, 2, 3, 4, 5, 6, 123456789, time.UTC))
	touch(t, in("ping"), time.Date(1965, 1, 1, 0, 0, 0, 5, time.UTC))
	touch(t, in("long"), time.Date(2107, 1, 1, 0, 0, 0, 999999999, time.UTC))
	touch(t, in("tmp"), time.Date(2039, 1, 1, 0, 0, 0, 1, time.UTC))
	must(t, unix.Chmod(dir, 0o711), unix.Chown(dir, 3, 4))
	touch(t, dir, time.Date(2041, 1, 1, 0, 0, 0, 7, time.UTC))
}

// described is every file of a tree with all that is to be the same, by path.
func described(t *testing.T, dir string) map[string]string {
	t.Helper()
	out, names := map[string]string{}, map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if err != nil || name == lostAndFound {
			return err
		}
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		text := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		xattrs, err := files.XattrsOf(path)
		must(t, err)
		for _, key := range slices.Sorted(maps.Keys(xattrs)) {
			text += fmt.Sprintf(" %s=%x", key, xattrs[key])
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if names[st.Ino] == "" {
				names[st.Ino] = name
			}
			text += " is " + names[st.Ino]
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			text += contentOf(t, path, st.Size)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			must(t, err)
			text += " → " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" %x", st.Rdev)
		}
		out[name] = text
		return nil
	}))
	return out
}

// contentOf a file, and its holes.
func contentOf(t *testing.T, path string, size int64) string {
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	sum, text := sha256.New(), fmt.Sprintf(" %d bytes", size)
	for next := int64(0); next < size; {
		start, end, err := files.NextData(f, next, size)
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		_, err = io.Copy(sum, io.NewSectionReader(f, start, end-start))
		must(t, err)
		text, next = text+fmt.Sprintf(" %d-%d", start, end), end
	}
	return text + fmt.Sprintf(" %x", sum.Sum(nil)[:8])
}

// within mounts a disk and describes what is in it. Its file system has no fault.
func within(t *testing.T, c *collect) map[string]string {
	t.Helper()
	var out map[string]string
	mountedAt(t, c, func(dir string) { out = described(t, dir) })
	return out
}

func mountedAt(t *testing.T, c *collect, do func(dir string)) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	must(t, err, Export(t.Context(), c, f, nil), f.Close(), run(t.Context(), "e2fsck", "-fn", f.Name()))
	dir := t.TempDir()
	command(t, "mount", "-o", "loop,ro", f.Name(), dir)
	defer command(t, "umount", dir)
	do(dir)
}

func differ(t interface {
	Helper()
	Errorf(string, ...any)
}, what string, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %.60q is\n\t%s\nwant\n\t%s", what, name, got[name], want[name])
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s: %q was not in the tree", what, name)
	}
}

// replacing is the options for a new version of a disk.
func replacing(c *collect, o Options) Options {
	o.Previous = func(ctx context.Context, f *os.File) error { return Export(ctx, c, f, nil) }
	return o
}

// archived makes a tar file as people do who want to keep all.
func archived(t *testing.T, dir string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tree.tar")
	args = append([]string{"--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "-C", dir, "-cf", path}, args...)
	command(t, "tar", args...)
	return path
}

func TestTreeIsTheSameByEitherWay(t *testing.T) {
	other, dir := t.TempDir(), t.TempDir()
	makeTree(t, other, "su", "lastlog", "pipe/below", "shared/x", "gone/y", "null", "links")
	must(t, os.WriteFile(filepath.Join(other, "hole"), []byte("less than a block"), 0o600), os.Link(filepath.Join(other, "su"), filepath.Join(other, "ping")), os.Symlink("gone", filepath.Join(other, "empty")))
	wonders(t, dir)
	path := archived(t, dir, ".")
	must(t, unix.Mknod(filepath.Join(dir, "socket"), unix.S_IFSOCK|0o755, 0), os.WriteFile(filepath.Join(dir, "line\nbreak"), nil, 0o600))
	touch(t, dir, time.Date(2041, 1, 1, 0, 0, 0, 7, time.UTC))
	before := read(t, Options{Path: other})
	want := described(t, dir)
	var warned []string
	warn := func(text string) { warned = append(warned, text) }
	first := read(t, Options{Path: dir, Warn: warn})
	differ(t, "a directory", within(t, first), want)
	differ(t, "a directory that replaces another", within(t, read(t, replacing(before, Options{Path: dir, Warn: warn}))), want)
	again := read(t, replacing(first, Options{Path: dir, Warn: warn}))
	differ(t, "a directory that replaces itself", within(t, again), want)
	if n := changed(first, again); n > 3 { // the superblock, and what descriptors and bitmaps say of the journal
		t.Errorf("%d chunks changed where nothing did", n)
	}
	delete(want, "socket") // which tar leaves out
	delete(want, "line\nbreak")
	differ(t, "a tar file", within(t, read(t, Options{Path: path, Warn: warn})), want)
	differ(t, "a tar file that replaces a directory", within(t, read(t, replacing(first, Options{Path: path, Warn: warn}))), want)
	if len(warned) > 0 {
		t.Errorf("warned of %v", warned)
	}
}

// changed counts the chunks of a disk that another does not have in that place.
func changed(was, is *collect) (n int) {
	for i, b := range is.chunks {
		if !bytes.Equal(was.chunks[i], b) {
			n++
		}
	}
	return n
}

// TestTreeWithoutRoot has a child that is nobody make the disks.
func TestTreeWithoutRoot(t *testing.T) {
	const path, out = "GRANGE_TEST_TREE", "GRANGE_TEST_DISK"
	if os.Getenv(path) != "" { // the child
		nobody(t, os.Getenv(path), os.Getenv(out))
		return
	}
	dir, at := t.TempDir(), t.TempDir()
	wonders(t, dir)
	for _, name := range []string{"private", "<12>", "listed", "lastlog", "su", "ping", "shared/inside", "."} { // nobody has to read them
		must(t, unix.Chmod(filepath.Join(dir, name), 0o755))
	}
	touch(t, filepath.Join(dir, "su"), time.Date(2040, 2, 3, 4, 5, 6, 123456789, time.UTC))
	packed := archived(t, dir, ".")
	for _, p := range []string{at, filepath.Dir(at), filepath.Dir(packed), packed} {
		must(t, os.Chmod(p, 0o777))
	}
	program := filepath.Join(at, "test")
	command(t, "cp", os.Args[0], program)
	for i, source := range []string{dir, packed} {
		want := described(t, dir)
		disk := filepath.Join(at, fmt.Sprint("disk", i))
		cmd := exec.Command(program, "-test.run=^TestTreeWithoutRoot$")
		cmd.Dir, cmd.Env = at, append(os.Environ(), path+"="+source, out+"="+disk, "TMPDIR="+at)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		differ(t, "without root", within(t, read(t, Options{Path: disk})), want)
	}
}

func nobody(t *testing.T, path, out string) {
	var warned string
	none := func(context.Context, *os.File) error { return errors.New("it is not asked for") }
	c := read(t, Options{Path: path, Previous: none, Warn: func(text string) { warned += text }})
	if !strings.Contains(warned, "afresh") || !strings.Contains(warned, "root") || strings.Contains(warned, "trusted.") == strings.HasSuffix(path, ".tar") {
		t.Errorf("warned of %q", warned)
	}
	f, err := os.Create(out)
	must(t, err, Export(t.Context(), c, f, nil), f.Close())
}

// TestLossesAreNamed, and are the same by either way: what ext4 has no place for.
func TestLossesAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "it.tar")
	write := func(h ...tar.Header) {
		f, err := os.Create(path)
		must(t, err)
		w := tar.NewWriter(f)
		for i := range h {
			h[i].Typeflag, h[i].Format = tar.TypeReg, tar.FormatPAX
			must(t, w.WriteHeader(&h[i]))
		}
		must(t, w.Close(), f.Close())
	}
	write(
		tar.Header{Name: "big", Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 60_000), "SCHILY.xattr.user.small": "y"}},
		tar.Header{Name: "late", Mode: 0o644, ModTime: time.Date(9999, 1, 1, 0, 0, 0, 5, time.UTC)},
		tar.Header{Name: "early", Mode: 0o644, ModTime: time.Date(1, 1, 1, 0, 0, 0, 5, time.UTC)},
	)
	var want map[string]string
	for _, unable := range []error{nil, unix.EPERM} {
		var warned []string
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		o := Options{Path: path, Format: Tar, Temp: filepath.Join(t.TempDir(), "the node's \" files"), Note: func(string) {}, Warn: func(text string) { warned = append(warned, text) }, Room: func(int64) error { return nil }}
		must(t, err, os.Mkdir(o.Temp, 0o700), o.fill(t.Context(), f, unable), f.Close())
		for i, part := range []string{"big: attribute user.big is lost", "late, early: its time"} {
			if len(warned) != 2 || !strings.HasPrefix(warned[i], part) {
				t.Errorf("unable to mount: %v; warned of %q, want %s", unable, warned, part)
			}
		}
		got := within(t, read(t, Options{Path: f.Name()}))
		if want == nil {
			want = maps.Clone(got)
		}
		differ(t, "by debugfs", got, want)
	}
	write(tar.Header{Name: "root's by wrapping", Uid: 1 << 32})
	if _, err := Open(t.Context(), Options{Path: path, Format: Tar, Temp: t.TempDir()}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("an owner of 33 bits: %v", err)
	}
}

func TestTarWithoutARootOrFolders(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "usr/bin/tool")
	must(t, os.Chmod(dir, 0o700), os.Chmod(filepath.Join(dir, "usr"), 0o700))
	path := archived(t, dir, "usr/bin/tool")
	first := read(t, Options{Path: path})
	got := within(t, first)
	for _, name := range []string{".", "usr", "usr/bin"} {
		if !strings.HasPrefix(got[name], "40755 0:0 ") {
			t.Errorf("%s is %s", name, got[name])
		}
	}
	differ(t, "replaced", within(t, read(t, replacing(read(t, Options{Path: dir}), Options{Path: path}))), got)
}

func TestCutTarsAreRefused(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "a", "b")
	must(t, os.WriteFile(filepath.Join(dir, "zeros"), make([]byte, 4096), 0o600))
	path := archived(t, dir, "a", "b", "zeros")
	whole, err := os.ReadFile(path)
	must(t, err)
	end := int64(2 * (1<<20 + 3*tarBlock)) // the two first members, with their PAX headers
	for _, at := range []int64{tarBlock, 100_000, 1<<20 + tarBlock, end / 2, end - tarBlock, end, end + 4096, end + 3*tarBlock + 4096} {
		must(t, os.WriteFile(path, whole[:at], 0o600))
		if _, err := Open(t.Context(), Options{Path: path, Format: Tar, Temp: t.TempDir()}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("cut at %d: %v, want ErrInvalid", at, err)
		}
	}
}

// empties is a tar file of n empty files, in folders.
func empties(t *testing.T, n, perFolder int) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "empties.tar"))
	must(t, err)
	buffered := bufio.NewWriter(f)
	w := tar.NewWriter(buffered)
	for i := range n {
		must(t, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/file-with-a-name-%d", i/perFolder, i), Mode: 0o644, Typeflag: tar.TypeReg}))
	}
	must(t, w.Close(), buffered.Flush(), f.Close())
	return f.Name()
}

func TestTarsStayInTheirTree(t *testing.T) {
	outside := t.TempDir()
	path := filepath.Join(t.TempDir(), "hostile.tar")
	f, err := os.Create(path)
	must(t, err)
	w := tar.NewWriter(f)
	for _, h := range []tar.Header{
		{Name: "../../../../up", Typeflag: tar.TypeReg}, {Name: "out", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "dots", Typeflag: tar.TypeSymlink, Linkname: "../../../.."},
		{Name: "dots/through", Typeflag: tar.TypeReg}, {Name: outside[1:] + "/there", Typeflag: tar.TypeReg}, {Name: "out/escaped", Typeflag: tar.TypeReg},
		{Name: "up", Typeflag: tar.TypeReg, Mode: 0o600}, {Name: "again", Typeflag: tar.TypeLink, Linkname: "up"}, {Name: "up", Typeflag: tar.TypeReg, Mode: 0o640},
	} {
		must(t, w.WriteHeader(&h))
	}
	must(t, w.Close(), f.Close())
	got := within(t, read(t, Options{Path: path}))
	for _, name := range []string{"up", "through", outside[1:] + "/escaped", outside[1:] + "/there"} {
		if got[name] == "" {
			t.Errorf("%s is not in the tree", name)
		}
	}
	if !strings.HasPrefix(got["again"], "100600 ") || !strings.HasPrefix(got["up"], "100640 ") {
		t.Errorf("a name that came twice: %s, its link %s", got["up"], got["again"])
	}
	left, err := os.ReadDir(outside)
	if must(t, err); len(left) > 0 {
		t.Errorf("written outside: %v", left)
	}
}

func TestManyFilesHaveInodes(t *testing.T) {
	const many = 140_000
	n := needs{facts: map[string]fact{}, bytes: many * 40}
	for i := range many {
		n.facts[fmt.Sprint(i)] = fact{}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	must(t, err)
	defer f.Close()
	o := Options{Room: func(int64) error { return nil }}
	inodes := func(what string) {
		super := make([]byte, 4)
		_, err := f.ReadAt(super, 1024)
		if must(t, err); binary.LittleEndian.Uint32(super) < many*3/2 {
			t.Errorf("%s: %d inodes", what, binary.LittleEndian.Uint32(super))
		}
	}
	must(t, o.create(t.Context(), n, f, false))
	inodes("first")
	must(t, f.Truncate(0), o.create(t.Context(), needs{}, f, false), o.revise(t.Context(), n, f))
	inodes("grown")

	entries := soak.Of(10_000, many) // more than the small one has
	small := t.TempDir()
	makeTree(t, small, "a")
	mountedAt(t, read(t, replacing(read(t, Options{Path: small, Size: 64 << 20}), Options{Path: empties(t, entries, 1000)})), func(at string) {
		var st unix.Statfs_t
		must(t, unix.Statfs(at, &st))
		if used := st.Files - st.Ffree; used < uint64(entries) || st.Ffree < uint64(entries)/3 {
			t.Errorf("%d inodes used, %d free", used, st.Ffree)
		}
	})
}

func TestHolesCostNothing(t *testing.T) {
	dir := t.TempDir()
	sparse(t, filepath.Join(dir, "lastlog"), 8<<30, 5<<30)
	makeTree(t, dir, "a")
	var room int64
	o := Options{Path: dir, Room: func(n int64) error { room += n; return nil }}
	first := read(t, o)
	if first.size != 256<<20 || room > 32<<20 {
		t.Errorf("an image of %d bytes that needs %d", first.size, room)
	}
	makeTree(t, dir, "b")
	second := read(t, replacing(first, o))
	if n := changed(first, second); second.size != first.size || n > 20 {
		t.Errorf("replaced: size %d, %d chunks changed for a file of 1 MiB", second.size, n)
	}
	fromTar := read(t, replacing(second, Options{Path: archived(t, dir, ".")}))
	if n := changed(second, fromTar); n > 4 {
		t.Errorf("the same from a tar file: %d chunks changed", n)
	}
	differ(t, "replaced", within(t, fromTar), described(t, dir))
}

func TestLargeFilesChangeInPlace(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large") // there is no room for it twice
	must(t, os.WriteFile(large, noise("large", 40<<20), 0o644))
	first := read(t, Options{Path: dir, Size: 64 << 20})
	f, err := os.OpenFile(large, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), 20<<20)
	must(t, err, f.Close())
	second := read(t, replacing(first, Options{Path: dir}))
	if n := changed(first, second); n > 8 || second.size != first.size {
		t.Errorf("one byte of a large file: %d chunks changed, size %d, was %d", n, second.size, first.size)
	}
	must(t, os.WriteFile(large, noise("other", 80<<20), 0o644)) // and now it has none at all
	third := read(t, replacing(second, Options{Path: dir}))
	if third.size <= second.size {
		t.Errorf("a tree that has grown is in %d bytes", third.size)
	}
	differ(t, "grown", within(t, third), described(t, dir))
}

func TestFlatFolders(t *testing.T) {
	const many = 20_000
	o := Options{Path: empties(t, many, many)}
	first := read(t, o)
	mountedAt(t, first, func(at string) {
		names, err := os.ReadDir(filepath.Join(at, "d0"))
		if must(t, err); len(names) != many {
			t.Errorf("%d files", len(names))
		}
	})
	if n := changed(first, read(t, replacing(first, o))); n > 3 {
		t.Errorf("%d chunks changed", n)
	}
}

func TestChangesMeanwhileAreSaid(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "a", "b", "log", "z")
	var warned string
	o := Options{Path: dir, Warn: func(text string) { warned += text + "\n" }, Note: func(text string) {
		if strings.Contains(text, "writing") {
			must(t, os.WriteFile(filepath.Join(dir, "log"), noise("longer", 3<<20), 0o600), os.Remove(filepath.Join(dir, "z")))
		}
	}}
	read(t, o)
	for _, want := range []string{"log", "changed while", "fewer"} {
		if !strings.Contains(warned, want) {
			t.Errorf("warned of %q, want %q", warned, want)
		}
	}
}

func TestOwnFolderIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "a", "var/grange/secret")
	temp := filepath.Join(dir, "var/grange/tmp")
	must(t, os.Mkdir(temp, 0o700))
	got := within(t, read(t, Options{Path: dir, Temp: temp, Except: filepath.Join(dir, "var/grange")}))
	if _, ok := got["var/grange"]; ok || got["var"] == "" || got["a"] == "" {
		t.Errorf("it holds %v", slices.Collect(maps.Keys(got)))
	}
}

func TestRoomIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "a", "b")
	full := func(n int64) error {
		if n > 1<<20 {
			return content.ErrNoSpace
		}
		return nil
	}
	temp := t.TempDir()
	if _, err := Open(t.Context(), Options{Path: dir, Temp: temp, Room: full}); !errors.Is(err, content.ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
	if _, err := Open(t.Context(), Options{Path: dir, Temp: temp, Size: 2 << 20}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a --size that is too small: %v", err)
	}
	left, err := os.ReadDir(temp)
	if must(t, err); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
