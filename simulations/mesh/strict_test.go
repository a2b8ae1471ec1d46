package mesh

import (
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// manifestsMax is what the store sends of manifests for volumes that are made of an image, in bytes: who writes the record of
// one looks whether all is there that it names. They are of a few hundred bytes each.
const manifestsMax = 4 << 10

// TestNoOriginFallback: a node that was told so reads an image from members alone. While
// none has it, as its importer's cache was emptied, a warm fails and says
// why, and the store sends nothing; then another node warms it, and it is had from there.
func TestNoOriginFallback(t *testing.T) {
	l := newLab(t)
	_, store := front(t, l)
	from := start(t, l, store.URL, "a")[0]
	path, sum := disk(t, l.Dir, imageSize())
	run(t, from, "image", "import", "disk", path)
	strict, err := l.Start(t.Context(), "a", store.URL, "--no-origin-fallback", "image:disk", "--io-timeout", "2s")
	if err != nil {
		t.Fatal(err)
	}
	run(t, from, "cache", "evict", "1TiB")
	before := store.Sent("packs/")
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "--no-origin-fallback") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = strict.Run(t.Context(), "image", "warm", "disk")
	refused("a warm that nobody serves", err)
	if got := store.Sent("packs/") - before; got > 0 {
		t.Fatalf("the store sent %d bytes of packs", got)
	}
	run(t, from, "image", "warm", "disk")
	before = store.Sent("packs/")
	run(t, strict, "image", "warm", "disk")
	readAll(t, []*lab.Node{strict}, "v", "disk", sum)
	if got := store.Sent("packs/") - before; got > manifestsMax {
		t.Errorf("the store sent %d bytes of packs", got)
	}
	if image := get[api.Image](t, strict, "/api/images/disk"); image.Stored == 0 {
		t.Error("its record was not resolved")
	}
}
