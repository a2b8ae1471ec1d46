package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// child is what a map node and its page say about one entry.
type child struct {
	cid content.CID
	at  place
	// page of a child that is a map node itself, behind it in the same pack.
	pageCID content.CID
	page    place
}

// mapper gathers the entries of one level, which come with rising indexes, into
// nodes and pages. Owned by one goroutine.
type mapper struct {
	level   int
	node    uint64 // the node being gathered, valid while entries is not empty
	entries []child
}

// made is a map node and its page, not yet placed.
type made struct {
	level      int
	index      uint64
	node, page content.Verified
}

// add appends entry index of the level below. When it begins another node, the
// one before is returned.
func (m *mapper) add(packs *packTable, index uint64, c child) (out made, ok bool) {
	if len(m.entries) > 0 && m.node != index/content.MapFanout {
		out, ok = m.flush(packs)
	}
	m.node = index / content.MapFanout
	i := int(index % content.MapFanout)
	if i < len(m.entries) {
		panic(fmt.Sprintf("pack: entry %d of node %d/%d after entry %d", i, m.level, m.node, len(m.entries)-1))
	}
	for len(m.entries) < i {
		m.entries = append(m.entries, child{})
	}
	m.entries = append(m.entries, c)
	return out, ok
}

// flush returns the node that is being gathered, if any.
func (m *mapper) flush(packs *packTable) (made, bool) {
	if len(m.entries) == 0 {
		return made{}, false
	}
	n := content.Node{Level: m.level, Entries: make([]content.CID, len(m.entries))}
	for i, c := range m.entries {
		n.Entries[i] = c.cid
	}
	out := made{m.level, m.node, n.Encode(), content.Seal(encodePage(m.level, packs, m.entries))}
	m.entries = m.entries[:0]
	return out, true
}

// encodePage returns the page of a node with those entries, the last of which
// is no hole.
func encodePage(level int, packs *packTable, entries []child) []byte {
	var local packTable
	for _, c := range entries {
		if !c.cid.IsHole() {
			local.number(packs.ids[c.at.pack])
		}
	}
	b := make([]byte, 0, pageHeaderSize+len(local.ids)*(1+idSizeMax)+len(entries)*entrySize(level))
	b = append(b, pageMagic...)
	b = append(b, byte(level), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(entries)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(local.ids)))
	b = append(b, 0, 0)
	for _, id := range local.ids {
		b = append(append(b, byte(len(id))), id...)
	}
	for _, c := range entries {
		if c.cid.IsHole() {
			b = append(b, make([]byte, entrySize(level))...)
			continue
		}
		b = binary.BigEndian.AppendUint16(b, uint16(local.number(packs.ids[c.at.pack])))
		b = append(b, byte(c.at.codec), 0)
		b = binary.BigEndian.AppendUint32(b, c.at.offset)
		b = binary.BigEndian.AppendUint32(b, c.at.length)
		b = binary.BigEndian.AppendUint32(b, c.at.raw)
		if level > 1 {
			b = append(b, c.pageCID[:]...)
			b = binary.BigEndian.AppendUint32(b, c.page.length)
			b = binary.BigEndian.AppendUint32(b, c.page.raw)
			b = append(b, byte(c.page.codec), 0, 0, 0, 0, 0, 0, 0)
		}
	}
	return b
}
