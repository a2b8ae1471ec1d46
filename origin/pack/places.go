package pack

// Place is a Location without pointers, for those who keep many: Pack is its
// number in a Table.
type Place struct {
	Pack, Offset, Length, Raw uint32
	Codec                     Codec
}

// Table numbers packs in the order of their first use. Owned by one goroutine.
type Table struct {
	ids     []ID
	numbers map[ID]uint32
}

// Number returns the number of a pack, a new one at its first use.
func (t *Table) Number(id ID) uint32 {
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

// Place returns l by the number of its pack.
func (t *Table) Place(l Location) Place {
	return Place{t.Number(l.Pack), l.Offset, l.Length, l.Raw, l.Codec}
}

// Location returns what Place was given.
func (t *Table) Location(p Place) Location {
	return Location{Pack: t.ids[p.Pack], Offset: p.Offset, Length: p.Length, Raw: p.Raw, Codec: p.Codec}
}

// IDs returns all packs by their numbers; for reading only.
func (t *Table) IDs() []ID { return t.ids }
