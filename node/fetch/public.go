package fetch

import (
	"context"

	"github.com/grangemesh/grange/origin/content"
)

// IsPublic reports whether a block is a chunk or map node of a public root, as
// far as the maps of such roots are on this node.
func (f *Fetcher) IsPublic(ctx context.Context, id content.CID) bool {
	for _, rs := range f.all() {
		if rs.head.Scope.IsPublic() && f.names(ctx, rs, id) {
			return true
		}
	}
	return false
}

// names reports whether a root's map names the block.
func (f *Fetcher) names(ctx context.Context, rs *rootState, id content.CID) bool {
	if id == rs.head.Node.CID || id == rs.head.Page.CID {
		return true
	}
	for leaf := range uint64(len(rs.leaves)) {
		n, err := f.localNode(ctx, rs, content.Pos{Level: 1, Index: leaf})
		if err != nil || n == nil {
			continue
		}
		if n.id == id || n.page == id {
			return true
		}
		for _, entry := range n.Node.Entries {
			if entry == id {
				return true
			}
		}
	}
	return false
}
