package node

import (
	"slices"
	"testing"
)

func TestShare(t *testing.T) {
	for _, x := range []struct{ near, far, wantNear, wantFar int }{
		{0, 0, 0, 0}, {2, 2, 2, 2}, {9, 0, 6, 0}, {0, 9, 0, 6}, {9, 9, 3, 3}, {9, 1, 5, 1}, {1, 9, 1, 5}, {4, 3, 3, 3},
	} {
		near, far := slices.Repeat([]string{"near"}, x.near), slices.Repeat([]string{"far"}, x.far)
		want := slices.Concat(near[:x.wantNear], far[:x.wantFar])
		if got := share(near, far, 6); !slices.Equal(got, want) {
			t.Errorf("%d near and %d far: %v", x.near, x.far, got)
		}
	}
}
