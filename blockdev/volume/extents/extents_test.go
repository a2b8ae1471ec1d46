package extents

import (
	"testing"

	"pgregory.net/rapid"
)

// TestExtentMap lays ranges over each other and compares with a sector array.
func TestExtentMap(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		const sectors = 3000
		var m Map
		var want [sectors]int64 // offset of the data of each sector, in sectors; 0 is none
		next := int64(1)
		for range rapid.IntRange(1, 1500).Draw(r, "puts") {
			start := rapid.Uint64Range(0, sectors-1).Draw(r, "start")
			n := rapid.Uint64Range(1, min(sectors-start, 9)).Draw(r, "n")
			m.Put(Extent{Start: start, N: uint32(n), Data: next * SectorSize, Entry: uint32(n)})
			for i := range n {
				want[start+i] = next + int64(i)
			}
			next += int64(n)
		}
		for s := uint64(0); s < sectors; s++ {
			e, ok := m.At(s)
			here := ok && e.Start <= s
			if here != (want[s] != 0) || here && e.From(s).Data != want[s]*SectorSize {
				r.Fatalf("sector %d: %+v, %v; want data of sector %d", s, e, ok, want[s])
			}
		}
	})
}
