package fetch_test

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// every is each n-th chunk of an image that is none of its holes, and what they take at the origin.
func (m *node) every(g *fetch.Image, n int) (list []uint64, stored int) {
	m.w.t.Helper()
	for i := 0; i < imageChunks; i += n {
		list = append(list, uint64(i))
	}
	parts, err := g.Lay(m.w.t.Context(), list)
	m.w.check(err)
	for _, p := range parts {
		stored += p.Stored
	}
	return list, stored
}

// TestAListIsBroughtInExactly: what it names is here then, and nothing else, whatever it names that there is not; guests find
// it, and what they touch is recorded.
func TestAListIsBroughtInExactly(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	m := w.join("north", nil)
	g := m.open(im)
	list, stored := m.every(g, 5)
	w.forget()
	var came tally.Counters
	w.check(boots.Bring(t.Context(), g, true, append(slices.Clone(list), 1<<40, imageChunks, list[3]), &came))
	if got := int(w.got.Load()); got < stored || got > stored+stored/2 { // with gaps that are read rather than left out
		t.Errorf("%d bytes were read at the origin for %d", got, stored)
	}
	trace := touch.New(g.Root().Shape().Chunks, func() {})
	g.Record(trace)
	w.forget()
	var read []uint64
	p := make([]byte, 512)
	for _, index := range slices.Backward(list) {
		w.check(g.ReadChunk(t.Context(), index, 0, p))
		want := im.chunks[index]
		if want == nil {
			want = make([]byte, len(p))
		} else {
			read = append(read, index)
		}
		if !bytes.Equal(p, want[:len(p)]) {
			t.Errorf("chunk %d has other bytes", index)
		}
	}
	if n := w.gets.Load(); n > 0 {
		t.Errorf("%d reads of the origin for what was listed", n)
	}
	if got := trace.Chunks(); !slices.Equal(got, read) {
		t.Errorf("touched are %v, want %v", got, read)
	}
	here := 0
	for i := range uint64(imageChunks) {
		if !slices.Contains(list, i) && im.chunks[i] != nil && g.TryReadChunk(i, 0, p) {
			here++
		}
	}
	if here > 0 {
		t.Errorf("%d chunks are here that nobody has listed or read", here)
	}
}

// TestAListTakesFewRequests: a member alone has several runs of a list in one.
func TestAListTakesFewRequests(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	m := w.join("north", nil)
	g := m.open(im)
	list, stored := m.every(g, 1)
	w.forget()
	w.check(boots.Bring(t.Context(), g, true, list, new(tally.Counters)))
	if n, most := w.gets.Load(), int64(stored>>20)+1; n > most {
		t.Errorf("%d requests for %d bytes, want %d at most", n, stored, most)
	}
}

// TestAFarmReadsAListOnce: who boots at the same time has it from who leads it, and the origin is read once.
func TestAFarmReadsAListOnce(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	members := w.farm("north", 6)
	var list []uint64
	stored := 0
	images := make([]*fetch.Image, len(members))
	for i, m := range members {
		images[i] = m.open(im)
		list, stored = m.every(images[i], 2)
	}
	w.forget()
	var all sync.WaitGroup
	for _, g := range images {
		all.Go(func() { w.check(boots.Bring(t.Context(), g, true, list, new(tally.Counters))) })
	}
	all.Wait()
	if got := int(w.got.Load()); got > 2*stored { // each chunk once: a lead reads the run around what it is asked for
		t.Errorf("%d bytes were read at the origin, for a list of %d of which every other chunk is in it", got, stored)
	}
}

// TestListsBringWhatTheyName, and nothing else: holes and what is not there are passed over, and so is what lies below a node
// of the map that can't be had. What was brought is read by the guest without the origin.
func TestListsBringWhatTheyName(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves, dense: true})
	top, err := w.reader.ReadNode(t.Context(), im.Head.Scope, 2, im.Head.Top())
	w.check(err)
	below, _ := top.Page.ChildPair(top.Node, 1)
	w.bucket.Corrupt(below.Node.Pack.Key(), func(b []byte) { b[below.Node.Offset+below.Node.Length/2] ^= 1 })
	g := w.join("north", nil).open(im)
	list := []uint64{content.MapFanout + 3, twoLeaves + 40, 7, 1 << 40, twoLeaves + 1, content.MapFanout}
	want := []uint64{twoLeaves + 40, twoLeaves + 1}
	parts, err := g.Lay(t.Context(), list)
	if !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("a node that is damaged: %v", err)
	}
	var laid []uint64
	var came tally.Counters
	for _, p := range parts {
		for _, o := range p.Objects {
			laid = append(laid, o.Pos.Index)
		}
		w.check(g.Bring(t.Context(), exchange.PriorityReadahead, p, &came))
	}
	if slices.Sort(laid); !slices.Equal(laid, []uint64{twoLeaves + 1, twoLeaves + 40}) {
		t.Errorf("laid are %v", laid)
	}
	if n := came.Now().Origin; n != int64(len(want))*content.ChunkSizeDefault {
		t.Errorf("%d bytes have come", n)
	}
	w.forget()
	trace := touch.New(uint64(len(im.chunks)), func() {})
	g.Record(trace)
	p := make([]byte, content.ChunkSizeDefault)
	for _, i := range want {
		w.check(readOne(t.Context(), g, im, int(i), p))
	}
	if w.gets.Load() != 0 || !slices.Equal(trace.Chunks(), want) {
		t.Errorf("%d requests for what was brought; the trace has %v", w.gets.Load(), trace.Chunks())
	}
	if again, _ := g.Lay(t.Context(), want); len(again) > 0 {
		t.Errorf("what is here is laid again: %v", again)
	}
	if err := g.ReadChunk(t.Context(), list[0], 0, p); !errors.Is(err, content.ErrCorrupt) || g.Spent()["cache"] != 0 {
		t.Errorf("a read that fails: %v; waited was %v", err, g.Spent())
	}
}
