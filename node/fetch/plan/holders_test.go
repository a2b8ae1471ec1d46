package plan

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

// some is a set of n chunks from base on that does not compress.
func some(base uint64, n int) *content.Bitmap {
	var b content.Bitmap
	for i := range uint64(n) {
		b.Add(base + 3*i)
	}
	return &b
}

// wide is a set of so many containers of 8 KiB, from base on.
func wide(base uint64, containers int) *content.Bitmap {
	var b content.Bitmap
	for c := range uint64(containers) {
		b.Union(some(base+c<<16, 5000))
	}
	return &b
}

// TestBitmapsAreBounded: whoever shows whatever of whichever root, what is kept is
// bounded, a member, a root and a node; it is counted to the byte.
func TestBitmapsAreBounded(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var sets []*content.Bitmap
	for _, containers := range []int{1, 50, 200, 250, 300} {
		sets = append(sets, wide(0, containers), wide(1<<23, containers))
	}
	b := NewMember("self", "farm")
	var roots []*Root
	for range 8 {
		roots = append(roots, b.Root("root"))
	}
	refused, most := 0, 0
	for range 400 {
		r, p := roots[rng.IntN(len(roots))], Peer(fmt.Sprint(rng.IntN(10)))
		switch rng.IntN(8) {
		case 0:
			r.Drop(p)
		case 1:
			r.Lacks(p, []uint64{0, 3, 6})
		case 2:
			r.use()
		default:
			err := r.Show(p, p > "4", rng.IntN(2) == 0, sets[rng.IntN(len(sets))].Clone())
			if err != nil && (!errors.Is(err, content.ErrNoSpace) || r.Counts()[p] > 0) {
				t.Fatalf("%v, though it shows %d", err, r.Counts()[p])
			} else if err != nil {
				refused++
			}
		}
		total := 0
		for _, r := range roots {
			sum := 0
			for p, h := range r.held {
				if h.bytes != h.set.Bytes()+bitmapOverhead || h.bytes > memberMax {
					t.Fatalf("the bitmap of %s is counted as %d bytes, has %d", p, h.bytes, h.set.Bytes())
				}
				sum += h.bytes
			}
			if sum != r.bytes || sum > rootMax {
				t.Fatalf("a root's bitmaps are counted as %d bytes, have %d", r.bytes, sum)
			}
			total += sum
		}
		if total != b.Bytes() || total > nodeMax {
			t.Fatalf("all bitmaps are counted as %d bytes, have %d", b.Bytes(), total)
		}
		most = max(most, total)
	}
	t.Logf("%d times was there no room, and %d bytes at most", refused, most)
	if refused == 0 || most < nodeMax/2 {
		t.Error("the bounds were not met")
	}
}

// TestFarBitmapsGoFirst, those of roots that were looked at longest ago first.
func TestFarBitmapsGoFirst(t *testing.T) {
	b := NewMember("self", "farm")
	large := wide(0, 240)
	one := large.Bytes() + bitmapOverhead
	var roots []*Root
	for range nodeMax/(4*one) + 1 {
		r := b.Root("root")
		roots = append(roots, r)
		for _, p := range []Peer{"a", "b", "c", "d"} {
			if err := r.Show(p, p > "b", true, large.Clone()); err != nil {
				t.Fatal(err)
			}
		}
	}
	counts := roots[0].Counts()
	if counts["a"] == 0 || counts["b"] == 0 || counts["c"] > 0 || counts["d"] > 0 {
		t.Errorf("of the oldest root are kept %v, want those of a and b", counts)
	}
	if counts := roots[len(roots)-1].Counts(); len(counts) != 4 {
		t.Errorf("of the latest root are kept %v, want all", counts)
	}
}

// TestHoldersByWhatIsMissing: who shows most of it is asked first.
func TestHoldersByWhatIsMissing(t *testing.T) {
	m := NewMember("self", "farm")
	r := m.Root("root")
	for q, n := range map[Peer]int{"a": 1, "b": 3, "c": 2} {
		if err := r.Show(q, q == "c", true, some(0, n)); err != nil {
			t.Fatal(err)
		}
	}
	r.Lacks("b", []uint64{3})
	holders := func(far bool, missing ...uint64) (out []Peer) {
		var objects []Wanted
		for _, i := range missing {
			objects = append(objects, Wanted{Object: new(Object), Index: i})
		}
		_, j := m.Join(Config{Root: r}, objects)
		for p := j.holder(far); p != ""; p = j.holder(far) {
			j.asked[p] = true
			out = append(out, p)
		}
		return out
	}
	if near, far := holders(false, 0, 3, 6), holders(true, 0, 3, 6); !slices.Equal(near, []Peer{"b", "a"}) || !slices.Equal(far, []Peer{"c"}) {
		t.Errorf("holders are %v and %v", near, far)
	}
	if near, far := holders(false, 6), holders(true, 6); !slices.Equal(near, []Peer{"b"}) || len(far) > 0 {
		t.Errorf("holders of the last are %v and %v", near, far)
	}
}
