package pack

import (
	"maps"
	"slices"
	"sync"

	"github.com/grangemesh/grange/origin/content"
)

// place is a Location without pointers: pack is an index into a table.
type place struct {
	pack, offset, length, raw uint32
	codec                     Codec
}

// packTable numbers packs in the order of their first use. Owned by one
// goroutine.
type packTable struct {
	ids     []ID
	numbers map[ID]uint32
}

func (t *packTable) number(id ID) uint32 {
	if n, ok := t.numbers[id]; ok {
		return n
	}
	if t.numbers == nil {
		t.numbers = make(map[ID]uint32)
	}
	n := uint32(len(t.ids))
	t.ids = append(t.ids, id)
	t.numbers[id] = n
	return n
}

func (t *packTable) place(l Location) place {
	return place{t.number(l.Pack), l.Offset, l.Length, l.Raw, l.Codec}
}

func (t *packTable) location(p place) Location {
	return Location{Pack: t.ids[p.pack], Offset: p.offset, Length: p.length, Raw: p.raw, Codec: p.codec}
}

func (t *packTable) has(id ID) bool {
	_, ok := t.numbers[id]
	return ok
}

// sorted returns all packs, rising.
func (t *packTable) sorted() []ID { return slices.Sorted(maps.Keys(t.numbers)) }

// placedMax is how many objects a Builder remembers to store each once: 128 GiB
// of dense content, about 80 MB. What repeats beyond that may be stored again.
const placedMax = 1 << 20

// placed remembers where a Builder put its objects. One goroutine adds, any may
// ask.
type placed struct {
	mu    sync.RWMutex // guards where
	where map[content.CID]place
}

func (p *placed) get(id content.CID) (place, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	at, ok := p.where[id]
	return at, ok
}

func (p *placed) put(id content.CID, at place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.where) < placedMax {
		p.where[id] = at
	}
}
