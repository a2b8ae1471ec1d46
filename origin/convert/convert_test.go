package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
)

const chunk = content.ChunkSizeDefault

// sample is a sparse disk: data at the front, in the middle and at the end, the
// last chunk cut short.
func sample(t *testing.T) (path string, data []byte) {
	t.Helper()
	data = make([]byte, 24*chunk+3*content.SectorSize)
	rng := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 1, 9, 24} {
		rng.Read(data[at*chunk : min((at+1)*chunk, len(data))])
	}
	path = filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += chunk {
		part := data[off:min(off+chunk, len(data))]
		if !bytes.Equal(part, make([]byte, len(part))) {
			if _, err := f.WriteAt(part, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(f.Truncate(int64(len(data))), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, data
}

// collect is an image in memory: a Sink to fill it and a Source to read it.
type collect struct {
	size   int64
	chunks map[uint64][]byte
}

func (c *collect) sink(_ context.Context, index uint64, raw []byte) error {
	if !bytes.Equal(raw, make([]byte, len(raw))) {
		c.chunks[index] = bytes.Clone(raw)
	}
	return nil
}

func (c *collect) Root() content.Root { return content.Root{Size: c.size, ChunkSize: chunk} }

func (c *collect) NextData(_ context.Context, index uint64) (uint64, uint64, error) {
	for ; index < c.Root().Shape().Chunks; index++ {
		if c.chunks[index] != nil {
			return index, index + 1, nil
		}
	}
	return 0, 0, io.EOF
}

func (c *collect) ReadChunk(_ context.Context, index uint64, _ int, p []byte) error {
	if c.chunks[index] == nil {
		return content.ErrNotFound
	}
	copy(p, c.chunks[index])
	return nil
}

func read(t *testing.T, o Options) *collect {
	t.Helper()
	if o.Temp == "" {
		o.Temp = t.TempDir()
	}
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	c := &collect{d.Size(), map[uint64][]byte{}}
	if err := errors.Join(Chunks(t.Context(), d, chunk, c.sink, nil), d.Close()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(o.Temp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return c
}

func (c *collect) bytes() []byte {
	out := make([]byte, c.Root().Shape().Chunks*chunk)
	for i, b := range c.chunks {
		copy(out[i*chunk:], b)
	}
	return out[:c.size]
}

func TestFormatsGiveTheSameDisk(t *testing.T) {
	raw, data := sample(t)
	if got := read(t, Options{Path: raw}); !bytes.Equal(got.bytes(), data) {
		t.Fatal("raw: other bytes")
	}
	for _, format := range []Format{QCOW2, VMDK, VHDX, VDI, VPC} {
		t.Run(string(format), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", string(format), raw, path).CombinedOutput(); err != nil {
				t.Fatalf("qemu-img: %v: %s", err, out)
			}
			got := read(t, Options{Path: path})
			if !bytes.Equal(got.bytes()[:len(data)], data) {
				t.Error("other bytes")
			}
			if format == QCOW2 && got.size != int64(len(data)) {
				t.Errorf("size %d, want %d", got.size, len(data))
			}
		})
	}
}

func TestExportGivesTheSameSparseFile(t *testing.T) {
	raw, data := sample(t)
	c := read(t, Options{Path: raw})
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, len(data)+1), 0); err != nil { // which must not shine through the holes
		t.Fatal(err)
	}
	var last int64
	if err := Export(t.Context(), c, f, func(n int64) { last = n }); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes (%v)", err)
	}
	if want := int64(3*chunk + 3*content.SectorSize); last != want {
		t.Errorf("progress ended at %d, want %d", last, want)
	}
	if _, end, err := files.NextData(f, 2*chunk, c.size); err != nil || end > 10*chunk {
		t.Errorf("chunk 2 to 8 should be a hole: data ends at %d, %v", end, err)
	}
}

func TestBadSourcesAreRefused(t *testing.T) {
	raw, _ := sample(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	qcow := filepath.Join(dir, "q")
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	whole, err := os.ReadFile(qcow)
	if err != nil {
		t.Fatal(err)
	}
	backed := filepath.Join(dir, "backed")
	if out, err := exec.Command("qemu-img", "create", "-f", "qcow2", "-b", raw, "-F", "raw", backed).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	inside := t.TempDir()
	secret, parent := write("secret", make([]byte, 1<<20)), filepath.Join(inside, "parent")
	flat := func(name, part string) string {
		path := filepath.Join(inside, name)
		text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT %q 0\n", part)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	child := filepath.Join(inside, "child")
	for _, args := range [][]string{{"create", "-f", "vmdk", parent, "1M"}, {"create", "-f", "vmdk", "-b", parent, "-F", "vmdk", child}} {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	if err := os.Symlink(secret, filepath.Join(inside, "link")); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"vmdk of a file elsewhere": {Path: flat("elsewhere", secret)},
		"vmdk of a link there":     {Path: flat("linked", "link")},
		"vmdk with a parent":       {Path: child},
		"empty":                    {Path: write("empty", nil)},
		"compressed":               {Path: write("gz", []byte("\x1f\x8b\x08"))},
		"qcow2 header only":        {Path: write("cut", whole[:100])},
		"backing file":             {Path: backed},
		"file as directory":        {Path: raw, Format: Dir},
		"directory as raw":         {Path: dir, Format: Raw},
		"raw as vmdk":              {Path: raw, Format: VMDK},
	} {
		o.Temp = t.TempDir()
		if d, err := Open(t.Context(), o); err == nil {
			t.Errorf("%s: opened a disk of %d bytes", name, d.Size())
		} else if !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if err := checkSize(content.SizeMax + content.SectorSize); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("too large: %v, want ErrInvalid", err)
	}
	d, err := Open(t.Context(), Options{Path: write("truncated", whole[:len(whole)*2/3])})
	if err == nil {
		err = errors.Join(Chunks(t.Context(), d, chunk, (&collect{d.Size(), map[uint64][]byte{}}).sink, nil), d.Close())
	}
	if !errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrInvalid) {
		t.Errorf("truncated qcow2: %v, want an error", err)
	}
}

// makeTree writes files with some content each; names decide the content.
func makeTree(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		rng := rand.NewChaCha8([32]byte([]byte(strings.Repeat(name, 32))[:32]))
		b := make([]byte, 1<<20)
		rng.Read(b)
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o640)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDirectoryIsUpdatedInPlace(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "a", "b", "etc/c", "etc/d", "e", "f", "g", "h")
	first := read(t, Options{Path: dir})
	makeTree(t, dir, "usr/new")
	// A file that changed, and looks as it did: the same size, the same time.
	same := filepath.Join(dir, "e")
	before, err := os.Stat(same)
	if err != nil {
		t.Fatal(err)
	}
	rebuilt := bytes.Repeat([]byte("rebuilt "), 1<<17)
	if err := errors.Join(os.WriteFile(same, rebuilt, 0o640), os.Chtimes(same, before.ModTime(), before.ModTime()), os.Remove(filepath.Join(dir, "b"))); err != nil {
		t.Fatal(err)
	}
	second := read(t, Options{Path: dir, Previous: func(ctx context.Context, f *os.File) error { return Export(ctx, first, f, nil) }})
	if second.size != first.size {
		t.Fatalf("size %d, was %d", second.size, first.size)
	}
	changed := 0
	for i, b := range second.chunks {
		if !bytes.Equal(first.chunks[i], b) {
			changed++
		}
	}
	if limit := 4 * (1 << 20) / chunk; changed > limit {
		t.Errorf("%d of %d chunks changed for two files of 1 MiB, want at most %d", changed, len(second.chunks), limit)
	}
	listed := list(t, second)
	if !strings.Contains(listed, "new") || strings.Contains(listed, " b\n") {
		t.Errorf("the tree is not as it should be:\n%s", listed)
	}
	if !bytes.Contains(second.bytes(), rebuilt[:4<<10]) {
		t.Error("a file of the same size and time has its old bytes")
	}
}

// list checks an ext4 disk with e2fsck and lists its root and /usr.
func list(t *testing.T, c *collect) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err = errors.Join(err, Export(t.Context(), c, f, nil), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), "e2fsck", "-fn", path); err != nil {
		t.Error(err)
	}
	cmd := exec.Command("/usr/sbin/debugfs", "-R", "ls -l /", path)
	root, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	usr, err := exec.Command("/usr/sbin/debugfs", "-R", "ls -l /usr", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(root) + string(usr)
}

func TestTarGrowsTheFileSystem(t *testing.T) {
	dir := t.TempDir()
	makeTree(t, dir, "a")
	first := read(t, Options{Path: dir})
	path := filepath.Join(t.TempDir(), "tree.tar")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	grown := read(t, Options{Path: path, Size: first.size * 2, Previous: func(ctx context.Context, f *os.File) error { return Export(ctx, first, f, nil) }})
	if grown.size != first.size*2 {
		t.Errorf("size %d, want %d", grown.size, first.size*2)
	}
	list(t, grown)
	_, err := Open(t.Context(), Options{Path: path, Size: first.size / 2, Temp: t.TempDir(), Previous: func(ctx context.Context, f *os.File) error { return Export(ctx, first, f, nil) }})
	if !errors.Is(err, content.ErrConflict) {
		t.Errorf("a smaller size: %v, want ErrConflict", err)
	}
}
