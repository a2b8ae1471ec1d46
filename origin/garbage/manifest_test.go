package garbage

import (
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
)

// TestAManifestOfAnotherRoot says nothing of what a root needs, though another record names it rightly: its map does.
func TestAManifestOfAnotherRoot(t *testing.T) {
	w := newWorld(t)
	w.publish(t, "base", chunks(100, 1000))
	head, m := w.pack(t, chunks(110, 1000), content.Mesh()) // in two packs
	other := w.publish(t, "other", chunks(10, 9000))
	if len(m.Packs) != 2 {
		t.Fatalf("%d packs", len(m.Packs))
	}
	head.Manifest = other.Manifest
	w.put(t, content.KindImage, "wrong", "", head)
	w.remove(t, "base")
	for range 3 {
		w.run(t)
		w.later(past)
	}
	if r, err := (verify.Config{Reader: pack.NewReader(w)}).Image(t.Context(), head); err != nil || r.Missing > 0 || r.Chunks != 110 {
		t.Fatalf("%+v %v", r, err)
	}
}
