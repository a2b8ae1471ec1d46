package images

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/swept"
)

// version returns what a name stands for.
func (w *world) version(t *testing.T, name string) *version {
	t.Helper()
	k, err := w.cfg.Names.Lookup(t.Context(), content.KindImage, name, true)
	if err != nil {
		t.Fatal(err)
	}
	body, err := catalog.DecodeImage(w.cfg.Codec, k.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &version{k, body}
}

// list returns one of what a name stands for.
func (w *world) list(t *testing.T, name string, stages ...[]uint64) *catalog.Boot {
	t.Helper()
	b := &catalog.Boot{Root: w.version(t, name).Root, Runs: 2, Made: 1_795_000_000}
	for _, chunks := range stages {
		b.Stages = append(b.Stages, catalog.BootStage{Share: 2, Chunks: chunks})
	}
	return b
}

// layOut has an operation lay out a list.
func (w *world) layOut(t *testing.T, name string, list *catalog.Boot) error {
	t.Helper()
	var failed error
	v, err := w.begin("layout", name, func(ctx context.Context, op *operations.Operation) error {
		failed = w.LayOut(ctx, op, name, list)
		return nil
	})
	if err == nil {
		_, err = w.cfg.Operations.Wait(t.Context(), v.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	return failed
}

// lies fails unless the record of a name says a list, and the pack of its top begins with that.
func (im *importer) lies(name string, list *catalog.Boot) {
	im.t.Helper()
	now := im.version(im.t, name)
	if now.body.Boot == nil || !reflect.DeepEqual(now.body.Boot.Stages, list.Stages) || now.body.Boot.Runs != list.Runs || now.body.Boot.Made != list.Made {
		im.t.Fatalf("%s says %+v, want %+v", name, now.body.Boot, list)
	}
	d, err := pack.NewReader(im.store).ReadDirectory(im.t.Context(), now.Head.Node.Pack)
	if err != nil {
		im.t.Fatal(err)
	}
	n, stored := 0, uint64(0)
	for chunk := range list.All() {
		raw := im.raw[chunk*content.ChunkSizeDefault:][:content.ChunkSizeDefault]
		if d.Entries[n].CID != content.Sum(raw) {
			im.t.Fatalf("frame %d of %s is not chunk %d", n, now.Head.Node.Pack, chunk)
		}
		stored += uint64(d.Entries[n].Length)
		n++
	}
	if d.Entries[n].Role == pack.RoleChunk || now.body.Boot.Stored != stored {
		im.t.Fatalf("more than the list is in its pack, or it takes %d bytes and not %d", stored, now.body.Boot.Stored)
	}
}

// TestLayOut: an image is laid out by its list, and so are its tags. Readers of the old head go on. What is as good as laid
// out is not laid out again.
func TestLayOut(t *testing.T) {
	im := newImporter(t)
	clear(im.raw[5*content.ChunkSizeDefault:][:content.ChunkSizeDefault]) // a hole
	if err := os.WriteFile(im.source, im.raw, 0o600); err != nil {
		t.Fatal(err)
	}
	im.publish("debian")
	for _, tag := range []string{"stable", "older"} {
		if _, err := im.Tag(t.Context(), "debian", tag); err != nil {
			t.Fatal(err)
		}
	}
	farmed := im.version(t, "older").body // of the same root, for others than the image is
	farmed.Head.Scope = content.Farm("lyon")
	if err := im.record(t.Context(), content.KindTag, "farmed", farmed, nil); err != nil {
		t.Fatal(err)
	}
	first := im.root("debian")
	stages := [][]uint64{{20, 21, 30}, {0, 3, 31}, {7, 9, 10}, {1, 2}}
	list := im.list(t, "debian", append(stages, []uint64{5})...)
	if err := im.layOut(t, "debian", list); err != nil {
		t.Fatal(err)
	}
	list = im.list(t, "debian", stages...)
	for _, name := range []string{"debian", "stable", "older"} {
		im.lies(name, list)
		if now := im.root(name); now.Head.Root != first.Head.Root || now.Head == first.Head {
			t.Errorf("%s stands for %+v after %+v", name, now.Head, first.Head)
		}
	}
	if b := im.version(t, "farmed").body; b.Head != farmed.Head || b.Boot != nil {
		t.Errorf("a tag of another scope stands for %+v now", b)
	}
	if b := im.version(t, "stable").body; b.Target != "debian" {
		t.Errorf("a tag is of %q now", b.Target)
	}
	for _, root := range []string{"debian", "stable"} {
		if err := im.read(im.learn(im.reader(), im.root(root))); err != nil {
			t.Error(err)
		}
	}
	if err := im.read(im.learn(im.reader(), first)); err != nil {
		t.Error(err)
	}
	if v := im.done(im.Verify("debian")); v.Error != "" {
		t.Error(v.Error)
	}
	laid := im.root("debian").Head
	for name, stages := range map[string][][]uint64{"less": {{20, 21, 30}, {0, 3, 31}, {7, 9}, {1, 2}}, "in another order": {{0, 3, 20, 21, 30, 31}, {1, 2, 7, 9, 10}}} {
		list = im.list(t, "debian", stages...)
		if err := im.layOut(t, "debian", list); err != nil {
			t.Fatal(err)
		}
		now := im.version(t, "debian")
		if *now.Head != laid || !reflect.DeepEqual(now.body.Boot.Stages, list.Stages) || now.body.Boot.Stored == 0 {
			t.Errorf("%s: %+v, list %+v", name, now.Head, now.body.Boot)
		}
	}
	list = im.list(t, "debian", []uint64{11, 12, 20}, []uint64{0, 3, 31})
	if err := im.layOut(t, "debian", list); err != nil {
		t.Fatal(err)
	}
	im.lies("debian", list)
	if err := im.read(im.learn(im.reader(), im.root("debian"))); err != nil {
		t.Error(err)
	}
}

// TestLayOutOfWhatIsNotHere: a node that has nothing of a list asks for all of it at once, by the run, and not for a chunk when
// the one before it has come.
func TestLayOutOfWhatIsNotHere(t *testing.T) {
	const runs = 4
	var cold atomic.Bool
	var asked atomic.Int64
	all := make(chan struct{})
	store := mem.New(t, mem.Config{Wait: func(ctx context.Context, c mem.Call) error {
		if !cold.Load() || c.Op != mem.Get || c.Range.Length < content.ChunkSizeDefault { // nor what says where they lie
			return nil
		}
		if asked.Add(1) == runs {
			close(all)
		}
		select {
		case <-all:
		case <-time.After(time.Minute):
			t.Error("one is waited for before the next is asked for")
		case <-ctx.Done():
		}
		return nil
	}})
	im := &importer{world: newWorldOver(t, store), t: t, source: filepath.Join(t.TempDir(), "disk"), raw: make([]byte, runs*content.RunSize)}
	_, _ = rand.NewChaCha8([32]byte{7}).Read(im.raw)
	if err := os.WriteFile(im.source, im.raw, 0o600); err != nil {
		t.Fatal(err)
	}
	im.publish("debian")
	cfg := im.cfg
	cfg.Cache = openCache(t)
	cfg.Fetcher = newFetcher(t, cfg, store)
	im.Images = New(cfg)
	cold.Store(true)
	list := im.list(t, "debian", []uint64{1, 2, 11, 12}, []uint64{19, 20, 27, 28})
	if err := im.layOut(t, "debian", list); err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n != runs {
		t.Errorf("%d requests for what is in %d runs", n, runs)
	}
	im.lies("debian", list)
}

// TestLayOutRefuses what is of another version, and what is no list.
func TestLayOutRefuses(t *testing.T) {
	im := newImporter(t)
	im.publish("debian")
	good := im.list(t, "debian", []uint64{1})
	for name, x := range map[string]struct {
		name string
		list func(b *catalog.Boot)
		want error
	}{
		"another root": {"debian", func(b *catalog.Boot) { b.Root = content.Sum(nil) }, content.ErrConflict},
		"no image":     {"ubuntu", func(*catalog.Boot) {}, content.ErrNotFound},
		"no runs":      {"debian", func(b *catalog.Boot) { b.Runs = 0 }, content.ErrInvalid},
		"nothing":      {"debian", func(b *catalog.Boot) { b.Stages = nil }, content.ErrInvalid},
		"beyond":       {"debian", func(b *catalog.Boot) { b.Stages[0].Chunks = []uint64{32} }, content.ErrInvalid},
	} {
		list := *good
		list.Stages = []catalog.BootStage{{Share: 1, Chunks: []uint64{1}}}
		x.list(&list)
		if err := im.layOut(t, x.name, &list); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
	if n := len(swept.Packs(t, im.store)); n != 1 || im.version(t, "debian").body.Boot != nil {
		t.Errorf("a list that was refused is in the record, or in one of %d packs", n)
	}
}

// TestLayOutMeetsAnotherVersion: of the same root it is written over, as what it says otherwise is the same; of another it
// stays.
func TestLayOutMeetsAnotherVersion(t *testing.T) {
	for name, same := range map[string]bool{"of the same root": true, "of another": false} {
		t.Run(name, func(t *testing.T) {
			s := &sweeping{before: "records/image/debian"}
			im := &importer{world: s.world(t), t: t, source: t.TempDir() + "/disk", raw: make([]byte, 4<<20)}
			_, _ = rand.NewChaCha8([32]byte{7}).Read(im.raw)
			if err := os.WriteFile(im.source, im.raw, 0o600); err != nil {
				t.Fatal(err)
			}
			im.publish("debian")
			list := im.list(t, "debian", []uint64{3, 4, 9}, []uint64{0, 1})
			was := im.version(t, "debian")
			body := was.body
			if body.Source = "another"; !same {
				body.Head = stored(t, im.world, 1).Head
			}
			b, err := body.Encode(im.cfg.Codec)
			if err != nil {
				t.Fatal(err)
			}
			other, err := catalog.New(catalog.Config{Bucket: im.store, Verifier: im.cfg.Verifier, Signer: im.cfg.Signer})
			if err != nil {
				t.Fatal(err)
			}
			do := func() {
				if _, err := other.Commit(t.Context(), catalog.Change{Kind: content.KindImage, Name: "debian", Body: b, Base: &was.Record}); err != nil {
					t.Error(err)
				}
			}
			s.do.Store(&do)
			err = im.layOut(t, "debian", list)
			now := im.version(t, "debian")
			if now.body.Source != "another" {
				t.Errorf("it says %q", now.body.Source)
			}
			if !same {
				if !errors.Is(err, content.ErrConflict) || !strings.Contains(err.Error(), "another version") || now.body.Boot != nil {
					t.Errorf("%v, and the record has %+v", err, now.body.Boot)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			im.lies("debian", list)
		})
	}
}

// TestASmallListIsLaidOutOnce: what it takes of a pack is little beside the nodes of the map above it, which lie there too.
func TestASmallListIsLaidOutOnce(t *testing.T) {
	im := newImporter(t)
	clear(im.raw)
	for i := range len(im.raw) / content.ChunkSizeDefault {
		im.raw[i*content.ChunkSizeDefault] = byte(i + 1)
	}
	if err := os.WriteFile(im.source, im.raw, 0o600); err != nil {
		t.Fatal(err)
	}
	im.publish("debian")
	list := im.list(t, "debian", []uint64{3, 4, 9}, []uint64{0, 1})
	for range 2 {
		if err := im.layOut(t, "debian", list); err != nil {
			t.Fatal(err)
		}
		im.lies("debian", list)
	}
	if n := len(swept.Packs(t, im.store)); n != 2 {
		t.Errorf("there are %d packs, want the image's and the list's", n)
	}
}

// TestAnImportMeetsALayout: who imports for long does not fail by who profiles meanwhile, and the new version has what holds of
// that list. Over a version of other content it fails.
func TestAnImportMeetsALayout(t *testing.T) {
	s := &sweeping{before: "records/image/debian"}
	im := &importer{world: s.world(t), t: t, source: t.TempDir() + "/disk", raw: make([]byte, 4<<20)}
	_, _ = rand.NewChaCha8([32]byte{7}).Read(im.raw)
	write := func(changed int) {
		t.Helper()
		im.raw[changed*content.ChunkSizeDefault]++
		if err := os.WriteFile(im.source, im.raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	im.publish("debian")
	for _, changed := range []int{9, 0} { // a list that there is for the first time, and one that is new
		list := im.list(t, "debian", []uint64{3, 4, 9}, []uint64{0, 1, uint64(20 + changed)})
		do := func() {
			if err := im.layOut(t, "debian", list); err != nil {
				t.Error(err)
			}
		}
		write(changed)
		s.do.Store(&do)
		im.publish("debian")
		now := im.version(t, "debian")
		if now.Root == list.Root || now.body.Lineage[0] != list.Root || now.body.Boot == nil || now.body.Boot.Chunks() != list.Chunks()-1 {
			t.Errorf("after chunk %d it has list %+v", changed, now.body.Boot)
		}
	}
	was := im.version(t, "debian")
	other := was.body
	other.Head, other.Boot = stored(t, im.world, 1).Head, nil
	do := func() {
		if err := im.record(t.Context(), content.KindImage, "debian", other, &was.Record); err != nil {
			t.Error(err)
		}
	}
	write(5)
	s.do.Store(&do)
	view := im.done(im.Import(t.Context(), "debian", ImportRequest{Options: convert.Options{Path: im.source, Format: "raw"}, Replace: true}))
	if !strings.Contains(view.Error, "conflict") || im.version(t, "debian").body.Head != other.Head {
		t.Errorf("over another version: %q", view.Error)
	}
}

// TestANewVersionKeepsTheList for the chunks that are the same at the same places, which lie where they did; and none where
// that is too little.
func TestANewVersionKeepsTheList(t *testing.T) {
	var im *importer
	var list *catalog.Boot
	var laid *version
	for laid == nil { // until others would be referred to rather, as packs of one hour are by their names
		im = newImporter(t)
		im.publish("debian")
		first := im.root("debian").Head.Node.Pack
		list = im.list(t, "debian", []uint64{20, 21, 30}, []uint64{0, 3, 31}, []uint64{7, 9})
		if err := im.layOut(t, "debian", list); err != nil {
			t.Fatal(err)
		}
		if now := im.version(t, "debian"); now.Head.Node.Pack > first {
			laid = now
		}
	}
	change := func(chunks ...int) *version {
		t.Helper()
		for _, i := range chunks {
			im.raw[i*content.ChunkSizeDefault]++
		}
		if err := os.WriteFile(im.source, im.raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := im.publish("debian"); n != int64(len(chunks)*content.ChunkSizeDefault) {
			t.Errorf("%d bytes were new after %d chunks", n, len(chunks))
		}
		if err := im.read(im.learn(im.reader(), im.root("debian"))); err != nil {
			t.Error(err)
		}
		return im.version(t, "debian")
	}
	if now := change(); now.Head.Top() != laid.Head.Top() || !reflect.DeepEqual(now.body.Boot, laid.body.Boot) {
		t.Errorf("the same again is %+v, list %+v", now.Head, now.body.Boot)
	}
	now := change(1, 21, 0, 31)
	want := [][]uint64{{20, 30}, {3}, {7, 9}}
	if now.body.Boot == nil || now.body.Boot.Root != now.Root || now.Root == laid.Root {
		t.Fatalf("the list is %+v", now.body.Boot)
	}
	at, err := build.Find(t.Context(), pack.NewReader(im.store).ReadNode, *now.Head, now.body.Boot.All())
	if err != nil {
		t.Fatal(err)
	}
	stored := uint64(0)
	for i, s := range now.body.Boot.Stages {
		if !slices.Equal(s.Chunks, want[i]) {
			t.Errorf("stage %d has %d, want %d", i, s.Chunks, want[i])
		}
		for _, chunk := range s.Chunks {
			if stored += uint64(at[chunk].Length); at[chunk].Pack != laid.Head.Node.Pack {
				t.Errorf("chunk %d lies in %s", chunk, at[chunk].Pack)
			}
		}
	}
	if now.body.Boot.Stored != stored || now.body.Boot.Made != list.Made || now.body.Boot.Runs != list.Runs {
		t.Errorf("the list is %+v, and takes %d bytes", now.body.Boot, stored)
	}
	// A snapshot that is promoted over it keeps what holds, too.
	promoted := now.body
	promoted.Boot = nil
	if err := im.Publish(t.Context(), "debian", promoted, true); err != nil {
		t.Fatal(err)
	}
	if again := im.version(t, "debian"); !reflect.DeepEqual(again.body.Boot, now.body.Boot) {
		t.Errorf("promoted over, the list is %+v", again.body.Boot)
	}
	promoted.Lineage = []content.CID{content.Sum(nil), now.Root}
	for _, name := range []string{"golden", "golden"} { // and so does one that was made from it
		if err := im.Publish(t.Context(), name, promoted, true); err != nil {
			t.Fatal(err)
		}
		if made := im.version(t, name); !reflect.DeepEqual(made.body.Boot, now.body.Boot) {
			t.Errorf("made from it, the list is %+v", made.body.Boot)
		}
	}
	if now := change(20, 30, 3); now.body.Boot != nil {
		t.Errorf("of a list of five chunks two are left: %+v", now.body.Boot)
	}
}

// TestLayOutTakesNobodysWord: that a node has itself made the file system of an image is not said by another that lays it
// out.
func TestLayOutTakesNobodysWord(t *testing.T) {
	w := newWorld(t)
	publish(t, w, "debian")
	was := w.version(t, "debian")
	was.body.Files = true
	if !w.saying(was, was.body).Files {
		t.Error("its own file system is not its own any more")
	}
	was.Signer.Key[0]++
	if w.saying(was, was.body).Files {
		t.Error("another's file system is this node's own")
	}
}
