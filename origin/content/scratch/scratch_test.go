package scratch_test

import (
	"testing"

	"github.com/grangemesh/grange/origin/content/scratch"
)

// TestSizes: each size comes with its length, whatever was lent before.
func TestSizes(t *testing.T) {
	var p scratch.Pool
	sizes := []int{0, 1, 512, 4095, 4096, 4097, 64 << 10, 1<<20 + 512, 4 << 20, 4<<20 + 1}
	for range 3 {
		for _, n := range sizes {
			b := p.Get(n)
			if len(*b) != n || cap(*b) > 2*max(n, 4096)+256 {
				t.Fatalf("%d bytes of %d, want %d", len(*b), cap(*b), n)
			}
			p.Put(b)
		}
	}
}

// TestCutShort: a buffer that came back with less room is not lent for more.
func TestCutShort(t *testing.T) {
	var p scratch.Pool
	b := p.Get(8192)
	*b = (*b)[:5000:5000]
	p.Put(b)
	if got := len(*p.Get(8192)); got != 8192 {
		t.Errorf("%d bytes", got)
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
