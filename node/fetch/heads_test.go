package fetch_test

import (
	"log/slog"
	"testing"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// twice imports the same disk two times, into packs of its own each time.
func (w *world) twice() (first, second *image) {
	w.t.Helper()
	cfg := imageConfig{chunks: imageChunks, hole: twoLeaves}
	first, second = w.publish(cfg), w.publish(cfg)
	if first.id != second.id || first.Head == second.Head {
		w.t.Fatalf("heads %+v and %+v, want two of one root", first.Head, second.Head)
	}
	return first, second
}

// without is an origin on disk that lacks the packs of an image.
func (w *world) without(im *image) func(*fetch.Config) {
	w.t.Helper()
	store, err := dir.Open(w.t.Context(), w.t.TempDir(), slog.New(slog.DiscardHandler))
	w.check(err)
	m, err := pack.NewReader(w.bucket).ReadManifest(w.t.Context(), im.Head)
	w.check(err)
	for _, key := range w.bucket.Keys(string(content.KeyPacks)) {
		id, err := pack.ParseKey(key)
		w.check(err)
		if _, lost := m.Pack(id); lost {
			continue
		}
		b, _, err := bucket.ReadAll(w.t.Context(), w.bucket, key, pack.SizeMax)
		w.check(err)
		_, err = store.Put(w.t.Context(), key, bucket.Bytes(b), bucket.IfAbsent())
		w.check(err)
	}
	return func(cfg *fetch.Config) { cfg.Origin = func() fetch.Origin { return pack.NewReader(store) } }
}

// where a chunk lies by the head of an image.
func (w *world) where(im *image, index uint64) pack.Location {
	w.t.Helper()
	r, pair := pack.NewReader(w.bucket), im.Head.Top()
	for level := im.Head.Root.Shape().Depth(); ; level-- {
		n, err := r.ReadNode(w.t.Context(), im.Head.Scope, level, pair)
		w.check(err)
		_, span := content.Pos{Level: level - 1}.Chunks()
		i := int(index / span % content.MapFanout)
		if level == 1 {
			at, _ := n.Page.Child(i)
			return at
		}
		pair, _ = n.Page.ChildPair(n.Node, i)
	}
}

// TestAnotherHeadServes: of what was imported twice, the packs of one import are enough
// for who reads by the record of the other, in whichever order the two were looked up.
func TestAnotherHeadServes(t *testing.T) {
	reads := map[string]func(*fetch.Image, *image) error{
		"a guest":  func(g *fetch.Image, im *image) error { return readAll(t.Context(), g, im) },
		"prefetch": func(g *fetch.Image, _ *image) error { return g.Warm(t.Context(), nil) },
		"the map": func(g *fetch.Image, _ *image) error {
			_, _, err := g.NextData(t.Context(), 0)
			return err
		},
	}
	for name, read := range reads {
		for _, late := range []bool{false, true} { // the image is open before the other head is known
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				first, second := w.twice()
				m := w.join("north", w.without(first))
				if !late {
					m.open(second)
				}
				g := m.open(first)
				if late {
					m.open(second)
				}
				w.check(read(g, first))
				w.check(readAll(t.Context(), g, first))
			})
		}
	}
}

// TestHeadsMakeUpForEachOther: what is damaged by one head is read by the other, and the
// other way round.
func TestHeadsMakeUpForEachOther(t *testing.T) {
	w := newWorld(t)
	first, second := w.twice()
	flip := func(im *image, index uint64) {
		at := w.where(im, index)
		w.bucket.Corrupt(at.Pack.Key(), func(b []byte) { b[at.Offset+at.Length/2] ^= 1 })
	}
	flip(first, twoLeaves)
	flip(second, twoLeaves+9)
	flip(first, twoLeaves+28)
	m := w.join("north", nil)
	m.open(second)
	w.check(readAll(t.Context(), m.open(first), first))
}
