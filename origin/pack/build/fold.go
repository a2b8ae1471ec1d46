package build

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Change is a chunk that differs from the base: Raw as Builder.Add takes it, zeros for
// one that becomes a hole.
type Change struct {
	Index uint64
	Raw   []byte
}

// ReadNode reads a node of a map: at the origin as pack.Reader does, or from a cache.
type ReadNode func(ctx context.Context, scope content.Scope, level int, p pack.Pair) (pack.MapNode, error)

// Fold builds the root that a base becomes by changes: what a volume's layers say of its chunks. Changes come
// in any order, each index once, and new chunks lie in that order; their bytes are valid until the next one.
// Fold reads those nodes of the base's map that lie above a change, and stores what is new: the rest is kept.
// Up to some 32 MiB of new chunks go with their map in one Put. The new manifest is the base's but for the
// differences, so that who holds on to the Base that is returned reads none for the next fold. Where cfg has
// Shared the changes may be asked for twice. cfg.Size may exceed the base's; the zero Base is a blank disk.
func Fold(ctx context.Context, cfg Config, base Base, read ReadNode, changes iter.Seq2[Change, error]) (Base, Stats, error) {
	if cfg.fold = true; base.Head != (pack.Head{}) {
		cfg.ChunkSize, cfg.Base = base.Head.Root.ChunkSize, &base
		cfg.Lineage = append([]content.CID{base.Manifest.Root}, base.Manifest.Lineage...)
		cfg.Lineage = cfg.Lineage[:min(len(cfg.Lineage), content.LineageMax)]
	}
	once := func(cfg Config) (Base, Stats, error) { return foldOnce(ctx, cfg, read, changes) }
	if cfg.Shared == nil {
		return once(cfg)
	}
	return cfg.Shared.fold(ctx, cfg.withDefaults(), once)
}

func foldOnce(ctx context.Context, cfg Config, read ReadNode, changes iter.Seq2[Change, error]) (Base, Stats, error) {
	f := &fold{read: read}
	if cfg.Base != nil {
		f.base, f.depth = *cfg.Base, cfg.Base.Head.Root.Shape().Depth()
	}
	b, err := New(ctx, cfg)
	if err != nil {
		return Base{}, Stats{}, fmt.Errorf("fold: %w", err)
	}
	defer b.Abort()
	f.b = b
	if err := f.run(ctx, changes); err != nil {
		return Base{}, Stats{}, fmt.Errorf("fold: %w", err)
	}
	head, stats, err := b.Finish(ctx)
	return Base{head, b.Manifest()}, stats, err
}

// fold walks the map of the base beside the changes.
type fold struct {
	b       *Builder
	base    Base
	depth   int // of the base
	read    ReadNode
	changed []uint64 // chunks that are stored, not yet in the map
}

func (f *fold) run(ctx context.Context, changes iter.Seq2[Change, error]) error {
	for c, err := range changes {
		if err == nil {
			err = f.b.Ahead(ctx, c.Index, c.Raw)
		}
		if err != nil {
			return err
		}
		f.changed = append(f.changed, c.Index)
	}
	slices.Sort(f.changed)
	if err := f.node(ctx, content.Pos{Level: f.b.shape.Depth()}, f.base.Head.Top()); err != nil {
		return err
	}
	return f.name(ctx, math.MaxUint64)
}

func (f *fold) before(end uint64) bool { return len(f.changed) > 0 && f.changed[0] < end }

// name puts the changes below an index into the map.
func (f *fold) name(ctx context.Context, end uint64) error {
	for ; f.before(end); f.changed = f.changed[1:] {
		if err := f.b.Turn(ctx, f.changed[0]); err != nil {
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
	case was.Node.CID.IsHole():
		return f.name(ctx, end)
	case at.Level > f.depth:
		if err := f.node(ctx, at.Child(0), was); err != nil {
			return err
		}
		return f.name(ctx, end)
	case !f.before(end):
		return f.b.KeepMap(ctx, at, was)
	}
	n, err := f.read(ctx, f.b.cfg.Scope, at.Level, was)
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
			err = f.name(ctx, child.Index+1)
		case there:
			err = f.b.Keep(ctx, child.Index, pack.Extent{CID: n.Node.Entry(i), Location: where})
		}
	}
	if err != nil {
		return err
	}
	return f.name(ctx, end)
}
