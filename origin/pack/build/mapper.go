package build

import (
	"fmt"

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

// add appends entry index of the level below. When it begins another node, the
// one before is returned.
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
