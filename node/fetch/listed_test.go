package fetch_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/node/fetch/touch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

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
}
