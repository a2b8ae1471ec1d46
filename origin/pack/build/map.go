package build

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// mapper gathers the entries of one level, which come with rising indexes, into
// nodes and pages. Owned by one goroutine.
type mapper struct {
	level   int
	node    uint64 // the node being gathered, valid while entries is not empty
	entries []pack.Child
}

// made is a map node and its page, not yet placed, or one that is kept.
type made struct {
	level      int
	index      uint64
	node, page content.Verified
	kept       pack.Child // in their stead
}

// add appends entry index of the level below. When it begins another node, the one before is returned.
func (m *mapper) add(packs *pack.Table, index uint64, c pack.Child) (out made, ok bool) {
	if len(m.entries) > 0 && m.node != index/content.MapFanout {
		out, ok = m.flush(packs)
	}
	m.node = index / content.MapFanout
	i := int(index % content.MapFanout)
	if i < len(m.entries) {
		panic(fmt.Sprintf("pack: entry %d of node %d/%d after entry %d", i, m.level, m.node, len(m.entries)-1))
	}
	for len(m.entries) < i {
		m.entries = append(m.entries, pack.Child{})
	}
	m.entries = append(m.entries, c)
	return out, ok
}

// flush returns the node that is being gathered, if any.
func (m *mapper) flush(packs *pack.Table) (made, bool) {
	if len(m.entries) == 0 {
		return made{}, false
	}
	n := content.Node{Level: m.level, Entries: make([]content.CID, len(m.entries))}
	for i, c := range m.entries {
		n.Entries[i] = c.CID
	}
	out := made{level: m.level, index: m.node, node: n.Encode(), page: content.Seal(pack.EncodePage(m.level, packs, m.entries))}
	m.entries = m.entries[:0]
	return out, true
}

// tally counts what a map refers to in each pack, by the pack's number. Owned by one goroutine.
type tally []struct{ refs, bytes int64 }

func (t *tally) add(number uint32, refs, bytes int64) {
	for int(number) >= len(*t) {
		*t = append(*t, struct{ refs, bytes int64 }{})
	}
	(*t)[number].refs += refs
	(*t)[number].bytes += bytes
}

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

// placedMax is how many objects a Builder remembers to store each once: 128 GiB
// of dense content, about 80 MB. What repeats beyond that may be stored again.
const placedMax = 1 << 20

// placed remembers where a Builder put its objects. One goroutine adds, any may ask.
type placed struct {
	mu    sync.RWMutex // guards where
	where map[content.CID]pack.Place
}

func (p *placed) get(id content.CID) (pack.Place, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	at, ok := p.where[id]
	return at, ok
}

func (p *placed) put(id content.CID, at pack.Place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.where) < placedMax {
		p.where[id] = at
	}
}
