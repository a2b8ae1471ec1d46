package fetch_test

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/origin/content"
)

// public looks for a block of public content as a node does for whoever has no token:
// by its CID in the index of the cache, then among the roots.
func (m *node) public(id content.CID) (content.Verified, error) {
	v, err := m.cache.GetFor(id, cache.ReachPublic, nil)
	if err == nil {
		return v, nil
	}
	if root, ok := m.PublicRoot(id); ok {
		return root, nil
	}
	return content.Verified{}, content.ErrNotFound
}

// looks is how often the cache was looked into.
func looks(t testing.TB, c *cache.Cache) (n float64) {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(c.Collectors()...)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if name := f.GetName(); name == "grange_cache_hits_total" || name == "grange_cache_misses_total" {
			n += f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return n
}

// TestPublicBlocksAreFoundByTheIndex: a chunk, a node of a map, a page of it and a root
// of public content are found by one look each, whatever roots there are; what is here
// and is not public costs the one look that what nobody has costs.
func TestPublicBlocksAreFoundByTheIndex(t *testing.T) {
	w := newWorld(t)
	// Holes make it a root of a million chunks, whose map has two levels.
	public := w.publish(imageConfig{chunks: 40, dense: true, hole: 1 << 20, scope: content.Public()})
	mesh := w.publish(imageConfig{chunks: 40, dense: true, seed: 1, hole: 1 << 20})
	m := w.join("north", nil)
	names := map[*image][]content.CID{}
	for _, im := range []*image{public, mesh} {
		g := m.open(im)
		w.check(g.Warm(t.Context(), nil))
		for id, err := range g.CIDs(t.Context()) { // with the nodes and pages of its map
			w.check(err)
			if m.cache.HasFor(id, cache.ReachNone) {
				names[im] = append(names[im], id)
			}
		}
		if len(names[im]) < 40+4 {
			t.Fatalf("%d objects of the image are here", len(names[im]))
		}
	}
	absent := content.Sum([]byte("never was"))
	for _, x := range []struct {
		what  string
		ids   []content.CID
		found bool
	}{
		{"a public object", names[public], true}, {"a public root", []content.CID{public.id}, true},
		{"a private object", names[mesh], false}, {"a private root", []content.CID{mesh.id}, false}, {"what nobody has", []content.CID{absent}, false},
	} {
		for _, id := range x.ids {
			before := looks(t, m.cache)
			v, err := m.public(id)
			if found := err == nil; found != x.found || found && v.CID() != id || !found && !errors.Is(err, content.ErrNotFound) {
				t.Errorf("%s: %s, %v", x.what, v.CID(), err)
			}
			if n := looks(t, m.cache) - before; n != 1 {
				t.Errorf("%s took %v looks into the cache", x.what, n)
			}
		}
	}
}

// BenchmarkPublicBlock looks for what nobody has, what is here for the mesh alone, and
// what is public, beside a root of a million chunks.
func BenchmarkPublicBlock(b *testing.B) {
	w := newWorld(b)
	public := w.publish(imageConfig{chunks: 40, dense: true, hole: 1 << 20, scope: content.Public()})
	mesh := w.publish(imageConfig{chunks: 40, dense: true, seed: 1})
	m := w.join("north", nil)
	w.check(m.open(public).Warm(b.Context(), nil))
	w.check(m.open(mesh).Warm(b.Context(), nil))
	for _, x := range []struct {
		what string
		id   content.CID
	}{{"absent", content.Sum([]byte("never was"))}, {"private", content.Sum(mesh.chunks[1])}, {"public", content.Sum(public.chunks[1<<20+1])}} {
		b.Run(x.what, func(b *testing.B) {
			for b.Loop() {
				if _, err := m.public(x.id); (err == nil) != (x.what == "public") {
					b.Fatal(err)
				}
			}
		})
	}
}
