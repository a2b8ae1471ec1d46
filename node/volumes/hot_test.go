package volumes

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack/build"
)

const hotChunks = 3 * touch.Least

// publish has an image of hotChunks.
func (p *pair) publish(t *testing.T) {
	t.Helper()
	b, err := build.New(t.Context(), build.Config{Bucket: p.shelf.bucket, Scope: content.Mesh(), Size: hotChunks * content.ChunkSizeDefault})
	for i := range uint64(hotChunks) {
		err = errors.Join(err, b.Add(t.Context(), i, bytes.Repeat([]byte{byte(i + 1)}, content.ChunkSizeDefault)))
	}
	if err == nil {
		p.shelf.head, _, err = b.Finish(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestAStartIsNoBoot: guests go on over a start of the node, and what they read then is not what they boot by.
func TestAStartIsNoBoot(t *testing.T) {
	p := newPair(t)
	p.publish(t)
	told, again := 0, false
	opened := func(_ *fetch.Image, _ index.Entry, start bool) { told, again = told+1, start }
	p.a.cfg.Opened = opened
	spec := Spec{}
	spec.From = content.Ref{Kind: content.KindImage, Name: "debian"}
	p.a.put(t, "disk", spec)
	if told != 1 || again {
		t.Fatalf("a new volume is told of %d times, %t", told, again)
	}
	p.a = p.a.again(t)
	p.join(p.a)
	p.a.cfg.Opened = opened
	p.a.openAll(t.Context())
	if state := p.a.state(t, "disk"); state != terms.StateAttached || told != 2 || !again {
		t.Errorf("after a start it is %s, and told of %d times, %t", state, told, again)
	}
	if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	if p.a.put(t, "disk", Spec{}); told != 3 || again {
		t.Errorf("attached anew it is told of %d times, %t", told, again)
	}
}

// TestAVolumeBringsWhatWasReadFirst: its record says what was read first when it was in use the last time, and whoever opens
// it next is told, be it a boot that has ended or what there is of one when it is released. What is written and folded
// meanwhile changes none of that; a use that reads next to nothing neither.
func TestAVolumeBringsWhatWasReadFirst(t *testing.T) {
	p := newPair(t)
	p.publish(t)
	var mu sync.Mutex
	var told *catalog.Boot
	for _, w := range []*world{p.a, p.b} {
		w.cfg.Library = p.shelf
		w.cfg.Opened = func(m *fetch.Image, e index.Entry, _ bool) {
			m.Record(touch.New(m.Root().Shape().Chunks, func() {}))
			mu.Lock()
			defer mu.Unlock()
			told = e.Hot
		}
		w.run(t)
	}
	spec := Spec{}
	spec.From = content.Ref{Kind: content.KindImage, Name: "debian"}
	p.a.put(t, "disk", spec)
	if told != nil {
		t.Fatalf("a new volume was read before: %+v", told)
	}
	order := []uint64{}
	for i := range uint64(2 * touch.Least) {
		order = append(order, (i*7+5)%hotChunks)
	}
	use := func(w *world, chunks []uint64) {
		t.Helper()
		for _, i := range chunks {
			if err := w.device("disk").vol.ReadAt(t.Context(), make([]byte, 512), int64(i)*content.ChunkSizeDefault); err != nil {
				t.Fatal(err)
			}
		}
		err := w.device("disk").vol.WriteAt(t.Context(), make([]byte, 4096), int64(order[0])*content.ChunkSizeDefault, false)
		_, had, _ := p.a.records().Volume(t.Context(), "disk")
		if err == nil {
			err = w.device("disk").folds.Run(t.Context(), fold.Chunks)
		}
		if _, now, failed := p.a.records().Volume(t.Context(), "disk"); err == nil && (failed != nil || !slices.Equal(slices.Collect(now.Hot.All()), slices.Collect(had.Hot.All()))) {
			t.Errorf("while it may be read further, its record has %+v, %v", now.Hot, failed)
		}
		if err == nil {
			_, err = w.Detach(t.Context(), "disk", true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	knows := func(name string) {
		t.Helper()
		_, body, err := p.a.records().Volume(t.Context(), "disk")
		if err != nil || body.State != catalog.Released || body.Hot == nil {
			t.Fatalf("%s: %+v, %v", name, body, err)
		}
		if got := slices.Sorted(body.Hot.All()); !slices.Equal(got, slices.Sorted(slices.Values(order))) {
			t.Errorf("%s: its record has %v, and %v were read", name, got, order)
		}
	}
	use(p.a, order)
	knows("used")
	p.b.put(t, "disk", Spec{})
	if told == nil || told.Chunks() != len(order) {
		t.Errorf("where it moved to, %+v is told", told)
	}
	use(p.b, order[:touch.Least/2])
	knows("looked at")
	p.a.put(t, "disk", Spec{Takeover: false})
	if v := p.a.state(t, "disk"); v != terms.StateAttached {
		t.Errorf("it is %s", v)
	}
}

// TestWhatMovesBringsItsOwn: a disk is made of its image once. Where it moves to, and who exports what the image is, brings
// nothing of what boots of that want.
func TestWhatMovesBringsItsOwn(t *testing.T) {
	p := newPair(t)
	p.publish(t)
	made := 0
	p.shelf.made = func(content.Ref) { made++ }
	p.join(p.a)
	p.join(p.b)
	spec := Spec{}
	spec.From = content.Ref{Kind: content.KindImage, Name: "debian"}
	p.a.put(t, "disk", spec)
	if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{})
	p.b.exported(t, "image:debian")
	if made != 1 {
		t.Errorf("it is made of its image %d times", made)
	}
}
