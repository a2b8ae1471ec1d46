package build

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/golden"
)

// A whole image written long ago, compressed frames included, is still read.
func TestAnOldImageIsRead(t *testing.T) {
	im := newImage(2*content.MapFanout, 200, 0)
	c := content.NewCodec()
	if golden.Rewrite() {
		to := newMemory(t)
		h, _ := build(t, config(to, im), im)
		head, err := h.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, "image.head", head)
		golden.Check(t, "image.pack", to.object(t, h.Node.Pack.Key()))
	}
	head, err := os.ReadFile(filepath.Join("testdata", "image.head"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := pack.DecodeHead(c, head)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(filepath.Join("testdata", "image.pack"))
	if err != nil {
		t.Fatal(err)
	}
	from := newMemory(t)
	from.set(t, h.Node.Pack.Key(), packed)
	check(t, from, h, im)
}
