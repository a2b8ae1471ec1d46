package convert

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/simulations/soak"
)

// grove is the chunks of a tree in memory.
type grove [][]byte

func (g grove) ReadChunk(_ context.Context, index uint64, off int, p []byte) error {
	copy(p, g[index][off:][:len(p)])
	return nil
}

func (g grove) open(t *testing.T) *tree.Tree {
	t.Helper()
	return g.openBy(t, g.ReadChunk)
}

func (g grove) openBy(t *testing.T, read tree.ReadChunk) *tree.Tree {
	t.Helper()
	root := content.Root{Kind: content.RootTree, ChunkSize: tree.ChunkSize, Count: uint64(len(g))}
	for _, c := range g {
		root.Size += int64(len(c))
	}
	of, err := tree.Open(t.Context(), content.NewCodec(), root, read)
	must(t, err)
	return of
}

func plantAt(t *testing.T, o Options) (g grove, err error) {
	t.Helper()
	w, err := tree.NewWriter(tree.Config{Codec: content.NewCodec(), Add: func(_ context.Context, _ uint64, raw []byte) error {
		g = append(g, bytes.Clone(raw))
		return nil
	}})
	must(t, err)
	o.Temp, o.Warn, o.Room = t.TempDir(), func(text string) { t.Log(text) }, func(int64) error { return nil }
	f, err := OpenFiles(t.Context(), o)
	if err != nil {
		return nil, err
	}
	_, err = f.Plant(t.Context(), w)
	return g, errors.Join(err, f.Close())
}

func planting(t *testing.T, o Options) grove {
	t.Helper()
	g, err := plantAt(t, o)
	must(t, err)
	return g
}

func harvested(t *testing.T, g grove, dir string) map[string]string {
	t.Helper()
	must(t, Harvest(t.Context(), g.open(t), dir, func(text string) { t.Error(text) }))
	return described(t, dir)
}

// TestTreesComeBack: what was planted of a folder or of a tar file is written out as it was, also over another tree;
// and the two are the same tree.
func TestTreesComeBack(t *testing.T) {
	must(t, flag.Set("rapid.checks", strconv.Itoa(soak.Rounds(100))))
	rapid.Check(t, func(rt *rapid.T) {
		was, is, out := t.TempDir(), t.TempDir(), t.TempDir()
		randomTree(rt, was)
		randomTree(rt, is)
		differ(rt, "into an empty folder", harvested(t, planting(t, Options{Path: was, Format: Dir}), out), described(t, was))
		g := planting(t, Options{Path: is, Format: Dir})
		differ(rt, "over another", harvested(t, g, out), described(t, is))
		if of := planting(t, Options{Path: archived(t, is, "."), Format: Tar}); !bytes.Equal(bytes.Join(of, nil), bytes.Join(g, nil)) {
			rt.Errorf("of a tar file it is another tree")
		}
	})
}

// TestWondersComeBack has all that a file system of Linux can have.
func TestWondersComeBack(t *testing.T) {
	dir := t.TempDir()
	wonders(t, dir)
	differ(t, "written out", harvested(t, planting(t, Options{Path: dir, Format: Dir}), t.TempDir()), described(t, dir))
}

// TestTarsInAnyOrder: a tar file may have its files in any order and again, and links before their names sort.
func TestTarsInAnyOrder(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "b/c"), 0o755), os.WriteFile(filepath.Join(dir, "z"), []byte("last"), 0o644),
		os.Link(filepath.Join(dir, "z"), filepath.Join(dir, "a")), os.WriteFile(filepath.Join(dir, "b/c/d"), []byte("old"), 0o644))
	path := archived(t, dir, "z", "b", "a", ".")
	g := planting(t, Options{Path: path, Format: Tar})
	differ(t, "a tar file", harvested(t, g, t.TempDir()), described(t, dir))
	if of := planting(t, Options{Path: dir, Format: Dir}); !bytes.Equal(bytes.Join(of, nil), bytes.Join(g, nil)) {
		t.Error("it is another tree than of the folder")
	}
}

// TestBadTreesArePutNowhere: a tar file that leads elsewhere plants nothing there.
func TestBadTreesArePutNowhere(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	must(t, os.Symlink("/", filepath.Join(dir, "root")), os.Symlink("loop", filepath.Join(dir, "loop")))
	g := planting(t, Options{Path: dir, Format: Dir})
	differ(t, "links", harvested(t, g, out), described(t, dir))
	for _, script := range []string{
		`mkdir a; echo x >a/f; tar cf t.tar --transform 's,^a/f,../../escaped,' a/f`,
		`ln -s /tmp a; tar cf t.tar a; rm a; mkdir a; echo x >a/escaped; tar rf t.tar a/escaped`,
	} {
		dir := t.TempDir()
		shell(t, dir, script)
		g, err := plantAt(t, Options{Path: filepath.Join(dir, "t.tar"), Format: Tar})
		if err != nil {
			if !errors.Is(err, content.ErrInvalid) {
				t.Error(err)
			}
			continue
		}
		out := t.TempDir()
		harvested(t, g, out)
		if _, err := os.Lstat(filepath.Join(filepath.Dir(filepath.Dir(out)), "escaped")); err == nil {
			t.Error("it was written elsewhere")
		}
	}
}

// TestWhatIsMapped: a file's time tells the first change through a mapping alone, until its page is on disk. What was learnt of
// it beside that is not taken for what it is later.
func TestWhatIsMapped(t *testing.T) {
	for where, learns := range map[string]bool{"/var/tmp": true, "/dev/shm": false} { // a file system in memory has no such times at all
		t.Run(where, func(t *testing.T) { mapped(t, where, learns) })
	}
}

func mapped(t *testing.T, where string, learns bool) {
	dir, err := os.MkdirTemp(where, "grange-test-")
	must(t, err)
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "mapped"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(1<<20))
	b, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(b)
	b[0] = 1
	<-time.After(settled + 100*time.Millisecond)
	learn := func(write func(*Files, *tree.Writer) error) map[content.CID]tree.Segment {
		t.Helper()
		segments := map[content.CID]tree.Segment{}
		w, err := tree.NewWriter(tree.Config{
			Codec: content.NewCodec(), Add: func(context.Context, uint64, []byte) error { return nil }, Note: func(key content.CID, s tree.Segment) { segments[key] = s },
		})
		must(t, err)
		files, err := OpenFiles(t.Context(), Options{Path: dir, Format: Dir, Warn: func(string) {}, Note: func(string) {}})
		must(t, err)
		must(t, write(files, w))
		must(t, files.Close())
		return segments
	}
	before := learn(func(f *Files, w *tree.Writer) error { return f.Learn(t.Context(), w) })
	if len(before) > 0 != learns {
		t.Errorf("%d segments were learnt", len(before))
	}
	b[0] = 2
	after := learn(func(f *Files, w *tree.Writer) error { _, err := f.Plant(t.Context(), w); return err })
	for key, s := range after {
		if was, ok := before[key]; ok && !reflect.DeepEqual(was, s) {
			t.Errorf("one key is of two contents")
		}
	}
}
