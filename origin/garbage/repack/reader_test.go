package repack

import (
	"bytes"
	"log/slog"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/simulations/mem"
)

// boot is a root of which a chunk in five lives, and the reads of who boots from it: chunks that lie together.
func (w *world) boot(t *testing.T, reads, chunks int) (pack.Head, [][]pack.Extent) {
	t.Helper()
	d := make(disk, 5*reads*chunks)
	for i := range d {
		d[i] = uint64(i) + 1
	}
	cfg := build.Config{Bucket: w, Scope: content.Mesh(), Size: int64(len(d)) * chunk, ChunkSize: chunk, Signer: w.signer}
	b, err := build.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	for i, seed := range d {
		if err := b.Add(t.Context(), uint64(i), chunkOf(seed)); err != nil {
			t.Fatal(err)
		}
	}
	whole, _, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := pack.NewReader(w).ReadManifest(t.Context(), whole)
	if err != nil {
		t.Fatal(err)
	}
	less := slices.Clone(d)
	for i := range less {
		if i/chunks%5 > 0 {
			less[i] = 0
		}
	}
	h := w.store(t, less, build.Base{Head: whole, Manifest: m}, d).Head
	var out [][]pack.Extent
	n, err := pack.NewReader(w).ReadNode(t.Context(), h.Scope, h.Root.Shape().Depth(), h.Top())
	if err != nil {
		t.Fatal(err)
	}
	leaves := []pack.MapNode{n}
	if h.Root.Shape().Depth() > 1 {
		leaves = nil
		for i := range n.Page.Len() {
			if pair, ok := n.Page.ChildPair(n.Node, i); ok {
				leaf, err := pack.NewReader(w).ReadNode(t.Context(), h.Scope, 1, pair)
				if err != nil {
					t.Fatal(err)
				}
				leaves = append(leaves, leaf)
			}
		}
	}
	var run []pack.Extent
	for _, leaf := range leaves {
		for i := range leaf.Page.Len() {
			if at, ok := leaf.Page.Child(i); ok {
				if run = append(run, pack.Extent{CID: leaf.Node.Entry(i), Location: at}); len(run) == chunks {
					out, run = append(out, run), nil
				}
			}
		}
	}
	if len(out) != reads {
		t.Fatalf("%d reads, want %d", len(out), reads)
	}
	return h, out
}

// all is one group of whatever is there.
func (w *world) all(t *testing.T, h pack.Head) Written {
	t.Helper()
	out, err := w.repack(t.Context(), w.group(t), []pack.Head{h})
	if err != nil || len(out.Moved) == 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	return out
}

// The pages of a root go on naming packs that are stubs by now: that costs a reader three requests, once, and not one for
// each read.
func TestWhatMovedCostsAFewRequests(t *testing.T) {
	w := newWorld(t)
	h, reads := w.boot(t, 100, 16)
	cold := func() int {
		r, before := pack.NewReader(w), w.Count(mem.Get)
		if _, err := r.ReadManifest(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadNode(t.Context(), h.Scope, h.Root.Shape().Depth(), h.Top()); err != nil {
			t.Fatal(err)
		}
		for _, frames := range reads {
			got, err := pack.ReadMoved(t.Context(), r, frames)
			if err != nil || slices.ContainsFunc(got, func(v content.Verified) bool { return v.CID().IsHole() }) {
				t.Fatal(err)
			}
		}
		return w.Count(mem.Get) - before
	}
	before := cold()
	w.all(t, h)
	once := cold()
	w.all(t, h)
	// Two packs have moved: that of the whole, and that of the map. Each is tried, and its stub read; then there are one or
	// two directories, of one or two reads.
	if again := cold(); before != 102 || once > before+8 || again > before+8 {
		t.Fatalf("%d requests, %d after packs were written anew, %d after it was done again", before, once, again)
	}
}

// streamed reads frames, and does something when the first has come.
func streamed(t *testing.T, r *pack.Reader, frames []pack.Extent, then func()) {
	t.Helper()
	came := make([]bool, len(frames))
	err := pack.StreamMoved(t.Context(), r, frames, func(i int, v content.Verified) {
		if came[i] || v.CID() != frames[i].CID {
			t.Errorf("frame %d is %s, or came twice", i, v.CID())
		}
		came[i] = true
		if then != nil {
			then()
			then = nil
		}
	})
	if err != nil || slices.Contains(came, false) {
		t.Fatalf("%v, %v", came, err)
	}
}

// A reader goes on while its pack becomes a stub, between two reads and within one, and while the pack is deleted that
// took over, as yet another did.
func TestAReaderInTheMiddleGoesOn(t *testing.T) {
	w := newWorld(t)
	h, reads := w.boot(t, 20, 16)
	r := pack.NewReader(w)
	took := func(out Written) (ids []pack.ID) {
		for _, id := range out.Moved {
			ids = append(ids, id)
		}
		return ids
	}
	var last []pack.ID
	streamed(t, r, reads[0], func() { last = took(w.all(t, h)) })
	for i, frames := range reads[1:] {
		streamed(t, r, frames, func() {
			if i%2 == 0 {
				return
			}
			was := last
			last = took(w.all(t, h))
			for _, id := range was {
				if err := w.Delete(t.Context(), id.Key()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// So does one whose line breaks meanwhile: it can't have the rest of what it has begun.
func TestAReaderWhoseLineBreaksGoesOn(t *testing.T) {
	w := newWorld(t)
	h, reads := w.boot(t, 10, 16)
	r := pack.NewReader(bucket.Retry(w, bucket.RetryConfig{Wait: time.Millisecond}))
	w.fail(func(call int, c mem.Call) mem.Fault {
		if call == 0 {
			return mem.Fault{Err: content.ErrUnavailable, Applied: true} // in the middle of the body
		}
		return mem.Fault{}
	})
	streamed(t, r, reads[len(reads)-1], func() { w.all(t, h) })
}

// TestAFolderKeepsWhatIsBeingRead: so does a bucket in a folder, whose files are replaced.
func TestAFolderKeepsWhatIsBeingRead(t *testing.T) {
	folder, err := dir.Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, then := range []func(key string, info bucket.Info) error{
		func(key string, info bucket.Info) error {
			_, err := folder.Put(t.Context(), key, bucket.Bytes([]byte("stub")), bucket.IfMatch(info.ETag))
			return err
		},
		func(key string, _ bucket.Info) error { return folder.Delete(t.Context(), key) },
	} {
		const key, size = "packs/a", 1 << 20
		want := bytes.Repeat([]byte{7}, size)
		info, err := folder.Put(t.Context(), key, bucket.Bytes(want), bucket.Condition{})
		if err != nil {
			t.Fatal(err)
		}
		o, err := folder.Get(t.Context(), key, bucket.Range{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, size)
		if _, err := o.Body.Read(got[:10]); err != nil {
			t.Fatal(err)
		}
		if err := then(key, info); err != nil {
			t.Fatal(err)
		}
		for n := 10; n < size; {
			more, err := o.Body.Read(got[n:])
			if n += more; err != nil && n < size {
				t.Fatal(err)
			}
		}
		if err := o.Body.Close(); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("other bytes came, or %v", err)
		}
	}
}

// TestReadersBesideRepacks: many read with one Reader while packs are written anew, and those between are deleted.
func TestReadersBesideRepacks(t *testing.T) {
	w := newWorld(t)
	h, reads := w.boot(t, 20, 16)
	r := pack.NewReader(w)
	done := make(chan struct{})
	var readers errgroup.Group
	for i := range 4 {
		readers.Go(func() error {
			for n := i; ; n++ {
				if _, err := pack.ReadMoved(t.Context(), r, reads[n%len(reads)]); err != nil {
					return err
				}
				if _, err := r.ReadManifest(t.Context(), h); err != nil {
					return err
				}
				select {
				case <-done:
					return nil
				default:
				}
			}
		})
	}
	var before []pack.ID
	for range 10 {
		g := w.group(t)
		w.all(t, h)
		for _, id := range before {
			if err := w.Delete(t.Context(), id.Key()); err != nil {
				t.Fatal(err)
			}
		}
		before = nil
		for _, id := range g.Packs { // stubs by now that nothing but stubs has named
			if _, named := g.Stubs[id]; !named && len(g.Stubs) > 0 {
				before = append(before, id)
			}
		}
	}
	close(done)
	if err := readers.Wait(); err != nil {
		t.Fatal(err)
	}
}
