package build

import (
	"context"
	"fmt"
	"iter"
	"math"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Change is a chunk that differs from the base: Raw as Builder.Add takes it.
type Change struct {
	Index uint64
	Raw   []byte
}

// Fold builds the root that a base becomes by changes, which come by rising index;
// their bytes are valid until the next one. It reads the base's manifest and those
// nodes of its map that lie above a change, and stores what is new: the rest is kept.
// cfg.Size may exceed the base's. The caller gives the new root's Lineage.
func Fold(ctx context.Context, cfg Config, from *pack.Reader, base pack.Head, changes iter.Seq2[Change, error]) (pack.Head, Stats, error) {
	m, err := from.ReadManifest(ctx, base)
	if err != nil {
		return pack.Head{}, Stats{}, fmt.Errorf("fold: %w", err)
	}
	cfg.ChunkSize, cfg.Base, cfg.Fold = base.Root.ChunkSize, &Base{base, m}, true
	b, err := New(ctx, cfg)
	if err != nil {
		return pack.Head{}, Stats{}, fmt.Errorf("fold: %w", err)
	}
	defer b.Abort()
	next, stop := iter.Pull2(changes)
	defer stop()
	f := &fold{b: b, from: from, base: base, next: next}
	if err = f.advance(); err == nil {
		err = f.node(ctx, content.Pos{Level: b.shape.Depth()}, base.Top())
	}
	if err == nil {
		err = f.add(ctx, math.MaxUint64)
	}
	if err != nil {
		return pack.Head{}, Stats{}, fmt.Errorf("fold: %w", err)
	}
	return b.Finish(ctx)
}

// fold walks the map of the base beside the changes.
type fold struct {
	b    *Builder
	from *pack.Reader
	base pack.Head
	next func() (Change, error, bool)
	now  Change // the next change, while left
	left bool
}

func (f *fold) advance() (err error) {
	f.now, err, f.left = f.next()
	return err
}

// before reports whether the next change is below that index.
func (f *fold) before(end uint64) bool { return f.left && f.now.Index < end }

// add adds the changes below an index.
func (f *fold) add(ctx context.Context, end uint64) error {
	for f.before(end) {
		if err := f.b.Add(ctx, f.now.Index, f.now.Raw); err != nil {
			return err
		}
		if err := f.advance(); err != nil {
			return err
		}
	}
	return nil
}

// node folds what changes below a place, where the base has a node or a hole. Above
// the top of a smaller base, was is that top.
func (f *fold) node(ctx context.Context, at content.Pos, was pack.Pair) error {
	_, end := at.Chunks()
	switch {
	case at.Level > f.base.Root.Shape().Depth():
		if err := f.node(ctx, at.Child(0), was); err != nil {
			return err
		}
		return f.add(ctx, end)
	case was.Node.CID.IsHole():
		return f.add(ctx, end)
	case !f.before(end):
		return f.b.KeepMap(ctx, at, was)
	}
	n, err := f.from.ReadNode(ctx, f.b.cfg.Scope, at.Level, was)
	if err != nil {
		return err
	}
	err = f.b.Drop(ctx, n)
	for i := 0; i < n.Page.Len() && err == nil; i++ {
		child := at.Child(i)
		where, there := n.Page.Child(i)
		switch {
		case child.Level > 0:
			pair, _ := n.Page.ChildPair(n.Node, i)
			err = f.node(ctx, child, pair)
		case f.before(child.Index + 1):
			err = f.add(ctx, child.Index+1)
		case there:
			err = f.b.Keep(ctx, child.Index, pack.Extent{CID: n.Node.Entry(i), Location: where})
		}
	}
	if err != nil {
		return err
	}
	return f.add(ctx, end)
}
