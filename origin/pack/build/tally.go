package build

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// tally counts what a map refers to in each pack, by the pack's number. Owned by one
// goroutine.
type tally []struct{ refs, bytes int64 }

func (t *tally) add(number uint32, refs, bytes int64) {
	for int(number) >= len(*t) {
		*t = append(*t, struct{ refs, bytes int64 }{})
	}
	(*t)[number].refs += refs
	(*t)[number].bytes += bytes
}

// count adds a place of the map n times.
func (t *tally) count(c pack.Child, n int64) {
	t.add(c.At.Pack, n, n*(int64(c.At.Length)+int64(c.Page.Length)))
}

// sorted returns what is counted, and the others, by rising ID. It fails where more was
// taken away than there was: the manifest of a base was not that of its map.
func (t tally) sorted(ids, others []pack.ID) ([]pack.PackRefs, error) {
	var out []pack.PackRefs
	for n, c := range t {
		if c.refs < 0 || c.bytes < 0 || c.refs == 0 && c.bytes > 0 {
			return nil, fmt.Errorf("%w: the manifest of the base counts less in pack %s than its map refers to", content.ErrCorrupt, ids[n])
		}
		if c.refs > 0 || slices.Contains(others, ids[n]) {
			out = append(out, pack.PackRefs{ID: ids[n], Refs: uint64(c.refs), Bytes: uint64(c.bytes)})
		}
	}
	for _, id := range others {
		if !slices.ContainsFunc(out, func(p pack.PackRefs) bool { return p.ID == id }) {
			out = append(out, pack.PackRefs{ID: id})
		}
	}
	slices.SortFunc(out, func(a, b pack.PackRefs) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}
