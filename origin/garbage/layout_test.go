package garbage

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/verify"
)

// layOut has an image say a list of chunks, and those lie together.
func (w *world) layOut(t *testing.T, name string, order ...uint64) pack.Head {
	t.Helper()
	c, codec, reader := w.catalog(t), content.NewCodec(), pack.NewReader(w)
	r, err := c.Get(t.Context(), content.KindImage, name)
	if err != nil {
		t.Fatal(err)
	}
	body, err := catalog.DecodeImage(codec, r.Body)
	if err != nil {
		t.Fatal(err)
	}
	base, err := build.ReadBase(t.Context(), reader, body.Head)
	if err != nil {
		t.Fatal(err)
	}
	now, _, err := build.Relayout(t.Context(), build.Config{Bucket: w, Signer: w.signer, Now: w.now, PackSize: w.packSize}, base, reader.ReadNode, func(yield func(build.Change, error) bool) {
		for _, i := range order {
			if !yield(build.Change{Index: i, Raw: chunk(w.wants[name][i])}, nil) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	body.Head, body.Boot = now.Head, &catalog.Boot{Root: base.Manifest.Root, Runs: 1}
	for chunks := range slices.Chunk(order, catalog.BootStageMax) {
		body.Boot.Stages = append(body.Boot.Stages, catalog.BootStage{Share: 1, Chunks: slices.Sorted(slices.Values(chunks))})
	}
	b, err := body.Encode(codec)
	if err == nil {
		_, err = c.Commit(t.Context(), catalog.Change{Kind: content.KindImage, Name: name, Body: b, Base: &r})
	}
	lost, err2 := Secure(t.Context(), w, now.Manifest.Keys(), Follows(t.Context(), w, now.Head))
	if err != nil || err2 != nil || len(lost) > 0 {
		t.Fatal(err, err2, lost)
	}
	return now.Head
}

// head is what an image's record names.
func (w *world) head(t *testing.T, name string) pack.Head {
	t.Helper()
	r, err := w.catalog(t).Get(t.Context(), content.KindImage, name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := catalog.Describe(content.NewCodec(), r.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	return *d.Head
}

// reads reads all that a head names.
func (w *world) reads(t *testing.T, h pack.Head) error {
	t.Helper()
	report, err := verify.Config{Reader: pack.NewReader(w)}.Image(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return report.Err()
}

// spread are some chunks of 512 as a boot has them: most of them among the first, and others all over.
func spread(from, n uint64) (out []uint64) {
	for i := range n {
		if at := (from + i) % 64; i%3 < 2 {
			out = append(out, at)
		} else {
			out = append(out, 64+(from*11+i*7)%448)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	slices.Reverse(out)
	return out
}

// TestALaidOutImageLives: one image of some is laid out, and imported again. Packs that lost a few chunks to the layout stay as
// they are while no more is dead in all than may be, and its old head is read on.
func TestALaidOutImageLives(t *testing.T) {
	w := newWorld(t)
	w.packSize = 10 * repackLeast
	old := w.publish(t, "x", chunks(512, 1000))
	for i := range uint64(3) {
		w.publish(t, fmt.Sprint("y", i), chunks(512, 10_000*(i+1)))
	}
	now := w.layOut(t, "x", spread(5, 90)...)
	if now.Root != old.Root || now == old {
		t.Fatalf("%+v after %+v", now, old)
	}
	all := w.keys(t, string(content.KeyPacks))
	for range 3 {
		if r := w.run(t); r.Marked.Objects+r.Deleted.Objects+r.Repacked.Objects != 0 || len(r.Broken) != 0 {
			t.Fatalf("%+v", r)
		}
		w.check(t)
		w.later(past)
	}
	w.same(t, all)
	if err := w.reads(t, old); err != nil {
		t.Errorf("the old head: %v", err)
	}
	w.publish(t, "again", w.wants["x"]) // refers to what is there
	w.remove(t, "x")
	for range 3 {
		w.run(t)
		w.check(t)
		w.later(past)
	}
}

// TestLayoutsAreNotPaidForByWholeImages: all images of an origin are laid out, again and again, and collected. Only those
// packs are written anew that lost most, and no more is dead than may be.
func TestLayoutsAreNotPaidForByWholeImages(t *testing.T) {
	const images, rounds = 4, 3
	w := newWorld(t)
	w.packSize = 10 * repackLeast
	for i := range uint64(images) {
		w.publish(t, fmt.Sprint("x", i), chunks(512, 10_000*(i+1)))
	}
	size := w.bytes(t)
	for round := range uint64(rounds) {
		var before []pack.Head
		for i := range uint64(images) {
			name := fmt.Sprint("x", i)
			before = append(before, w.head(t, name))
			w.layOut(t, name, spread(17*round+i, 90)...)
		}
		laid := w.bytes(t)
		var anew Amount
		for _, wait := range []time.Duration{GraceDefault - time.Minute, past, past} {
			r := w.run(t)
			anew = Amount{anew.Objects + r.Repacked.Objects, anew.Bytes + r.Repacked.Bytes}
			w.check(t)
			for _, old := range before {
				if err := w.reads(t, old); err != nil && anew.Objects == 0 {
					t.Errorf("an old head, within the grace: %v", err)
				}
			}
			w.later(wait)
		}
		now := w.bytes(t)
		t.Logf("layout %d: %d bytes, laid out %d, then %d; %d packs of %d bytes were written anew", round, size, laid, now, anew.Objects, anew.Bytes)
		if anew.Bytes > size/4 || now > size*115/100 {
			t.Errorf("%d bytes were written anew for images of %d, which take %d now", anew.Bytes, size, now)
		}
	}
}
