package scratch_test

import (
	"testing"

	"github.com/grangemesh/grange/blockdev/scratch"
)

// TestSizes: each size comes with its length, whatever was lent before.
func TestSizes(t *testing.T) {
	var p scratch.Pool
	sizes := []int{0, 1, 512, 4095, 4096, 4097, 64 << 10, 1<<20 + 512, 4 << 20, 4<<20 + 1}
	for range 3 {
		for _, n := range sizes {
			b := p.Get(n)
			if len(*b) != n {
				t.Fatalf("%d bytes, want %d", len(*b), n)
			}
			p.Put(b)
		}
	}
}

// TestNotSharedWhileLent: two that are lent at once are two.
func TestNotSharedWhileLent(t *testing.T) {
	var p scratch.Pool
	p.Put(p.Get(4096))
	a, b := p.Get(4096), p.Get(4096)
	(*a)[0], (*b)[0] = 1, 2
	if (*a)[0] != 1 {
		t.Error("one buffer was lent twice")
	}
}
