package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// The encoding of a page. Numbers are big-endian.
//
//	offset  size  field
//	     0     8  magic "grpage\x00\x01"; the last byte is the version
//	     8     1  level of the map node that the page belongs to, from 1
//	     9     1  zero
//	    10     2  entries n, 1 to content.MapFanout; the last is not absent
//	    12     2  packs p, 1 to n
//	    14     2  zero
//	    16     …  p packs in the order of their first use: length (1), ID (text)
//	     …  n*16  level 1: n locations;  n*64 above: n locations with a page
//
// A location is all zeros when the child is a hole, else:
//
//	 0     2  pack, an index into the table
//	 2     1  codec
//	 3     1  key, 0 is none
//	 4     4  offset of the stored frame in the pack
//	 8     4  length of the stored frame
//	12     4  length of the raw bytes
//
// Above level 1 the child is a node, and its page lies directly behind it:
//
//	16    32  digest of the child's page
//	48     4  length of its stored frame
//	52     4  length of the raw page
//	56     1  codec
//	57     1  key, 0 is none
//	58     6  zero
//
// There is one encoding of a page only; a decoder refuses any other.
const (
	pageMagic      = "grpage\x00\x01"
	pageHeaderSize = 16
	locationSize   = 16
	nodeEntrySize  = 64

	// PageSizeMax bounds an encoded page: each entry of an upper page in a pack
	// of its own, of the longest name.
	PageSizeMax = pageHeaderSize + content.MapFanout*(1+IDSizeMax+nodeEntrySize)
)

// Page is the locator page of one map node: for each entry of the node, where the child's frame lies, and
// above level 1 the child's page too. It holds no more than its encoding. Safe for concurrent use.
type Page struct {
	level   int
	packs   []ID
	entries []byte
}

func entrySize(level int) int {
	if level == 1 {
		return locationSize
	}
	return nodeEntrySize
}

// Child is what a map node and its page say about one entry.
type Child struct {
	CID content.CID
	At  Place
	// Page of a child that is a map node itself, behind it in the same pack.
	PageCID content.CID
	Page    Place
}

// EncodePage returns the page of a node with those entries, the last of which is no hole.
func EncodePage(level int, packs *Table, entries []Child) []byte {
	var local Table
	for _, c := range entries {
		if !c.CID.IsHole() {
			local.Number(packs.ids[c.At.Pack])
		}
	}
	b := make([]byte, 0, pageHeaderSize+len(local.ids)*(1+IDSizeMax)+len(entries)*entrySize(level))
	b = append(b, pageMagic...)
	b = append(b, byte(level), 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(entries)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(local.ids)))
	b = append(b, 0, 0)
	for _, id := range local.ids {
		b = append(append(b, byte(len(id))), id...)
	}
	for _, c := range entries {
		if c.CID.IsHole() {
			b = append(b, make([]byte, entrySize(level))...)
			continue
		}
		b = binary.BigEndian.AppendUint16(b, uint16(local.Number(packs.ids[c.At.Pack])))
		b = append(b, byte(c.At.Codec), 0)
		b = binary.BigEndian.AppendUint32(b, c.At.Offset)
		b = binary.BigEndian.AppendUint32(b, c.At.Length)
		b = binary.BigEndian.AppendUint32(b, c.At.Raw)
		if level > 1 {
			b = append(b, c.PageCID[:]...)
			b = binary.BigEndian.AppendUint32(b, c.Page.Length)
			b = binary.BigEndian.AppendUint32(b, c.Page.Raw)
			b = append(b, byte(c.Page.Codec), 0, 0, 0, 0, 0, 0, 0)
		}
	}
	return b
}

// DecodePage reads the page of a map node at level, under a root of that scope.
// Anything but the one encoding of a valid page is ErrCorrupt; a page that
// refers to packs which the scope may not is ErrForbidden. It keeps b.
func DecodePage(scope content.Scope, level int, b []byte) (*Page, error) {
	p, err := decodePage(scope, level, b)
	if err != nil {
		return nil, fmt.Errorf("locator page: %w", err)
	}
	return p, nil
}

func decodePage(scope content.Scope, level int, b []byte) (*Page, error) {
	corrupt := func(why string) (*Page, error) { return nil, fmt.Errorf("%w: %s", content.ErrCorrupt, why) }
	if len(b) < pageHeaderSize || len(b) > PageSizeMax || string(b[:8]) != pageMagic {
		return corrupt("no magic, or a length outside the limits")
	}
	n, packs := int(binary.BigEndian.Uint16(b[10:])), int(binary.BigEndian.Uint16(b[12:]))
	switch {
	case level < 1 || level > content.LevelMax || int(b[8]) != level:
		return corrupt(fmt.Sprintf("level %d, want %d", b[8], level))
	case b[9]|b[14]|b[15] != 0:
		return corrupt("reserved bytes are set")
	case n == 0 || n > content.MapFanout || packs == 0 || packs > n:
		return corrupt(fmt.Sprintf("%d entries in %d packs", n, packs))
	}
	p := &Page{level: level, packs: make([]ID, 0, packs)}
	b = b[pageHeaderSize:]
	seen := make(map[ID]bool, packs)
	for range packs {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return corrupt("short pack table")
		}
		id, err := ParseID(string(b[1 : 1+b[0]]))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", content.ErrCorrupt, err)
		}
		if !id.Scope().Covers(scope) {
			return nil, fmt.Errorf("%w: content of scope %q refers to pack %s", content.ErrForbidden, scope, id)
		}
		if seen[id] {
			return corrupt("a pack is named twice")
		}
		seen[id] = true
		p.packs, b = append(p.packs, id), b[1+b[0]:]
	}
	if len(b) != n*entrySize(level) {
		return corrupt(fmt.Sprintf("%d bytes for %d entries", len(b), n))
	}
	p.entries = b
	return p, p.check()
}

// check fails with ErrCorrupt unless each entry is valid and the pack table is in the order of first use.
func (p *Page) check() error {
	used := 0
	for i := range p.Len() {
		e := p.entry(i)
		if e == nil && i == p.Len()-1 {
			return fmt.Errorf("%w: the last entry is absent", content.ErrCorrupt)
		}
		if e == nil {
			continue
		}
		pack := int(binary.BigEndian.Uint16(e))
		if pack > used || pack >= len(p.packs) {
			return fmt.Errorf("entry %d: %w: pack %d of %d, %d used", i, content.ErrCorrupt, pack, len(p.packs), used)
		}
		used = max(used, pack+1)
		child := p.location(e)
		if err := child.Check(); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if child.Raw > FrameSizeMax {
			return fmt.Errorf("entry %d: %w: frame of %d raw bytes", i, content.ErrCorrupt, child.Raw)
		}
		if p.level == 1 {
			continue
		}
		page := p.page(e, child)
		if page.CID.IsHole() || !content.IsZero(e[58:]) || uint64(page.Raw) > uint64(PageSizeMax) {
			return fmt.Errorf("entry %d: %w: the child's page", i, content.ErrCorrupt)
		}
		if err := page.Check(); err != nil {
			return fmt.Errorf("entry %d, page: %w", i, err)
		}
	}
	if used != len(p.packs) {
		return fmt.Errorf("%w: %d packs named, %d used", content.ErrCorrupt, len(p.packs), used)
	}
	return nil
}

func (p *Page) location(e []byte) Location {
	return Location{
		Pack:   p.packs[binary.BigEndian.Uint16(e)],
		Codec:  Codec(e[2]),
		Key:    e[3],
		Offset: binary.BigEndian.Uint32(e[4:]),
		Length: binary.BigEndian.Uint32(e[8:]),
		Raw:    binary.BigEndian.Uint32(e[12:]),
	}
}

func (p *Page) page(e []byte, child Location) Extent {
	return Extent{content.CID(e[16:48]), Location{
		Pack:   child.Pack,
		Offset: child.End(),
		Length: binary.BigEndian.Uint32(e[48:]),
		Raw:    binary.BigEndian.Uint32(e[52:]),
		Codec:  Codec(e[56]),
		Key:    e[57],
	}}
}

// Len returns the number of entries; those past the end are holes.
func (p *Page) Len() int { return len(p.entries) / entrySize(p.level) }

func (p *Page) entry(i int) []byte {
	if i < 0 || i >= p.Len() {
		return nil
	}
	size := entrySize(p.level)
	e := p.entries[i*size : (i+1)*size]
	if content.IsZero(e) {
		return nil
	}
	return e
}

// Child returns where the frame of entry i lies; false for a hole.
func (p *Page) Child(i int) (Location, bool) {
	e := p.entry(i)
	if e == nil {
		return Location{}, false
	}
	return p.location(e), true
}

// ChildPair returns the map node that entry i of the page's node names, with
// its page; false at level 1 and for a hole.
func (p *Page) ChildPair(n content.Node, i int) (Pair, bool) {
	e := p.entry(i)
	if e == nil || p.level == 1 {
		return Pair{}, false
	}
	child := p.location(e)
	return Pair{Extent{n.Entry(i), child}, p.page(e, child)}, true
}
