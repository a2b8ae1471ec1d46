package images

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
)

// importer is a node over an origin on disk, and a file that it imports.
type importer struct {
	*world
	t      *testing.T
	origin string // its folder
	source string
	raw    []byte
}

// newImporter has a disk of some runs that does not compress.
func newImporter(t *testing.T) *importer {
	t.Helper()
	folder := t.TempDir()
	store, err := dir.Open(t.Context(), folder, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	im := &importer{newWorldOver(t, store), t, folder, filepath.Join(t.TempDir(), "disk"), make([]byte, 4<<20)}
	_, _ = rand.NewChaCha8([32]byte{7}).Read(im.raw)
	if err := os.WriteFile(im.source, im.raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return im
}

// done waits for an operation that has begun.
func (im *importer) done(view operations.View, err error) operations.View {
	im.t.Helper()
	if err == nil {
		view, err = im.cfg.Operations.Wait(im.t.Context(), view.ID)
	}
	if err != nil {
		im.t.Fatal(err)
	}
	return view
}

// publish imports the disk, and returns how many bytes of it were new.
func (im *importer) publish(name string) int64 {
	im.t.Helper()
	view := im.done(im.Import(im.t.Context(), name, ImportRequest{Options: convert.Options{Path: im.source, Format: "raw"}, Replace: true}))
	if view.Error != "" {
		im.t.Fatalf("import %s: %s", name, view.Error)
	}
	return view.Bytes["new"]
}

// root is what the record of a name says now.
func (im *importer) root(name string) fetch.Root {
	im.t.Helper()
	k, err := im.cfg.Names.Lookup(im.t.Context(), content.KindImage, name, true)
	if err != nil {
		im.t.Fatal(err)
	}
	return RootOf(k)
}

// reader is a node with nothing in its cache.
func (im *importer) reader() *fetch.Fetcher {
	im.t.Helper()
	cfg := im.cfg
	cfg.Cache = openCache(im.t)
	return newFetcher(im.t, cfg, im.store)
}

func (im *importer) learn(f *fetch.Fetcher, root fetch.Root) *fetch.Image {
	im.t.Helper()
	m, err := f.Learn(root)
	if err != nil {
		im.t.Fatal(err)
	}
	return m
}

// read reads all of an image as a guest does.
func (im *importer) read(m *fetch.Image) error {
	p := make([]byte, content.ChunkSizeDefault)
	for i := range len(im.raw) / len(p) {
		if err := m.ReadChunk(im.t.Context(), uint64(i), 0, p); err != nil {
			return err
		}
		if !bytes.Equal(p, im.raw[i*len(p):][:len(p)]) {
			im.t.Fatalf("chunk %d has other bytes", i)
		}
	}
	return nil
}

// flip flips a bit in the frame of each object of a role in a pack; of chunks in the
// fourth.
func (im *importer) flip(id pack.ID, role pack.Role) {
	im.t.Helper()
	d, err := pack.NewReader(im.store).ReadDirectory(im.t.Context(), id)
	if err != nil {
		im.t.Fatal(err)
	}
	path := filepath.Join(im.origin, id.Key())
	b, err := os.ReadFile(path)
	if err != nil {
		im.t.Fatal(err)
	}
	for n, e := range d.Entries {
		if e.Role == role && (role != pack.RoleChunk || n == 3) {
			b[e.Offset+e.Length/2] ^= 1
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		im.t.Fatal(err)
	}
}

// TestImportingAgainMends: what is damaged or missing at the origin is named, and stored
// anew by importing the same again; who has the image open reads on.
func TestImportingAgainMends(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(im *importer, id pack.ID)
		what   string
		most   int64 // of the disk that is stored again
	}{
		"a chunk that is damaged": {func(im *importer, id pack.ID) { im.flip(id, pack.RoleChunk) }, "chunk 3 ", 2 * content.RunSize},
		"a map that is damaged":   {func(im *importer, id pack.ID) { im.flip(id, pack.RoleNode) }, "map node 1/0 ", 2 * content.RunSize},
		"a pack that is missing": {func(im *importer, id pack.ID) {
			if err := os.Remove(filepath.Join(im.origin, id.Key())); err != nil {
				im.t.Fatal(err)
			}
		}, "map node 1/0 ", 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImporter(t)
			im.publish("disk")
			was, reader := im.root("disk"), im.reader()
			open := im.learn(reader, was)
			c.damage(im, was.Head.Node.Pack)

			view := im.done(im.Verify("disk"))
			if !strings.Contains(view.Error, c.what) || !strings.Contains(view.Error, was.Head.Node.Pack.Key()) {
				t.Errorf("verify says %q, want %s and the pack", view.Error, c.what)
			}
			if err := im.read(open); err == nil {
				t.Error("what is damaged was read")
			}

			if n := im.publish("disk"); n > c.most {
				t.Errorf("%d bytes were stored again, want at most %d", n, c.most)
			}
			if view := im.done(im.Verify("disk")); view.Error != "" {
				t.Errorf("verify says %s after the disk was imported again", view.Error)
			}
			now := im.root("disk")
			im.learn(reader, now)
			if err := im.read(open); err != nil {
				t.Errorf("who had the image open: %v", err)
			}
			if err := im.read(im.learn(im.reader(), now)); err != nil {
				t.Error(err)
			}
			if n := im.publish("copy"); n != 0 {
				t.Errorf("%d bytes were stored for a third import", n)
			}
		})
	}
}

// TestTheSameDiskUnderTwoNames: the packs of the first name are deleted, and both read
// whole by those of the second.
func TestTheSameDiskUnderTwoNames(t *testing.T) {
	im := newImporter(t)
	im.publish("first")
	first := im.root("first")
	aside := t.TempDir() // so that the second import can't refer to them
	packs := filepath.Join(im.origin, "packs")
	if err := os.Rename(packs, filepath.Join(aside, "packs")); err != nil {
		t.Fatal(err)
	}
	im.publish("second")
	second := im.root("second")
	if first.Head.Root != second.Head.Root || first.Head == second.Head {
		t.Fatalf("heads %+v and %+v, want two of one root", first.Head, second.Head)
	}
	reader := im.reader()
	im.learn(reader, first)
	if err := im.read(im.learn(reader, second)); err != nil {
		t.Errorf("the second: %v", err)
	}
	reader = im.reader()
	byFirst := im.learn(reader, first)
	im.learn(reader, second)
	if err := im.read(byFirst); err != nil {
		t.Errorf("the first: %v", err)
	}
}
