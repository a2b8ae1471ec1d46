package mesh

import (
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/soak"
)

// nodesPerFarm of the crowd: 24 nodes in all in a soak.
func nodesPerFarm() int { return soak.Of(3, 12) }

// TestColdFarmsReadOnceEach: the importer is gone, nobody has anything of the
// image, and all nodes of two farms read it at once: the store sends it at most
// once to each farm.
func TestColdFarmsReadOnceEach(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	importer, err := l.Start(t.Context(), "c", store.URL)
	if err != nil {
		t.Fatal(err)
	}
	path, sum := disk(t, l.Dir, imageSize()/2)
	run(t, importer, "image", "import", "disk", path)
	var image api.Image
	if err := importer.Get(t.Context(), "/api/images/disk", &image); err != nil {
		t.Fatal(err)
	}
	for _, farm := range []string{"a", "b"} {
		for range nodesPerFarm() {
			if _, err := l.Start(t.Context(), farm, store.URL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := importer.Stop(); err != nil {
		t.Fatal(err)
	}
	crowd := l.Nodes()[1:]
	readAll(t, crowd, "v", "disk", sum)
	var total int64
	for _, n := range crowd {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total += s.Origin.BytesIn
		t.Logf("%-6s cache %4d, farm %4d, swarm %4d, origin %4d MiB", n.Name, s.Bytes.Cache>>20, s.Bytes.Farm>>20, s.Bytes.Swarm>>20, s.Bytes.Origin>>20)
	}
	t.Logf("%d nodes: stored %d bytes, read from the store %d: %.3f", len(crowd), image.Stored, total, float64(total)/float64(image.Stored))
	if total > 2*int64(image.Stored)*105/100 {
		t.Errorf("%d bytes were read from the store for two farms and %d stored", total, image.Stored)
	}
}
