package exchange

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestOutstandingCountsEachIndexOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		asked := rapid.SliceOfNDistinct(rapid.Uint64Range(0, 50), 1, 30, rapid.ID[uint64]).Draw(t, "asked")
		slices.Sort(asked)
		o := newOutstanding(asked)
		left := slices.Clone(asked)
		for _, index := range rapid.SliceOf(rapid.Uint64Range(0, 50)).Draw(t, "answers") {
			want := slices.Contains(left, index)
			if got := o.answer(index); got != want {
				t.Fatalf("answer(%d) = %v, want %v", index, got, want)
			}
			left = slices.DeleteFunc(left, func(i uint64) bool { return i == index })
		}
		if o.left != len(left) || !slices.Equal(o.rest(), left) {
			t.Fatalf("left %v, want %v", o.rest(), left)
		}
	})
}
