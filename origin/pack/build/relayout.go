package build

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Relayout stores some chunks of a root once more, in the order in which they come, in packs of their own and as small as
// can be, and behind them those nodes of its map that lie above them: who reads these chunks, as guests do that boot, reads
// one piece of a pack. The rest is kept. What it returns is of the same root, with the same lineage; a change that is none,
// as it has other bytes than the base, is content.ErrCorrupt. It is a Fold otherwise, of which importers are not told
// either: they refer to where chunks were stored first.
func Relayout(ctx context.Context, cfg Config, base Base, read ReadNode, chunks iter.Seq2[Change, error]) (Base, Stats, error) {
	root := base.Head.Root
	if base.Head == (pack.Head{}) || root.Kind != content.RootDisk {
		return Base{}, Stats{}, fmt.Errorf("lay out a root anew: %w: it is no disk", content.ErrInvalid)
	}
	cfg.fold, cfg.dense, cfg.Known, cfg.Shared = true, true, nil, nil
	cfg.Scope, cfg.Kind, cfg.Size, cfg.ChunkSize = base.Head.Scope, root.Kind, root.Size, root.ChunkSize
	cfg.Base, cfg.Lineage = &base, base.Manifest.Lineage
	out, stats, err := foldOnce(ctx, cfg, read, chunks)
	if err == nil && out.Head.Root != root {
		err = fmt.Errorf("%w: the chunks given are not those of root %s", content.ErrCorrupt, base.Manifest.Root)
	}
	if err != nil {
		return Base{}, stats, fmt.Errorf("lay out a root anew: %w", err)
	}
	return out, stats, nil
}

// Find returns where chunks of a disk lie; of holes, and of what is not there, nothing. It reads the nodes of the map above
// them, each once.
func Find(ctx context.Context, read ReadNode, head pack.Head, chunks iter.Seq[uint64]) (map[uint64]pack.Extent, error) {
	f := finding{ctx, read, head.Scope, map[uint64]pack.Extent{}}
	if head.Root.Map.IsHole() {
		return f.found, nil
	}
	return f.found, f.below(content.Pos{Level: head.Root.Shape().Depth()}, head.Top(), slices.Sorted(chunks))
}

type finding struct {
	ctx   context.Context
	read  ReadNode
	scope content.Scope
	found map[uint64]pack.Extent
}

// below finds some rising chunks below a node.
func (f *finding) below(at content.Pos, pair pack.Pair, chunks []uint64) error {
	if len(chunks) == 0 {
		return nil
	}
	n, err := f.read(f.ctx, f.scope, at.Level, pair)
	for i := 0; i < content.MapFanout && len(chunks) > 0 && err == nil; i++ {
		child := at.Child(i)
		_, end := child.Chunks()
		k, _ := slices.BinarySearch(chunks, end)
		if k == 0 {
			continue
		}
		if pair, ok := n.Page.ChildPair(n.Node, i); ok {
			err = f.below(child, pair, chunks[:k])
		} else if where, ok := n.Page.Child(i); ok {
			f.found[child.Index] = pack.Extent{CID: n.Node.Entry(i), Location: where}
		}
		chunks = chunks[k:]
	}
	return err
}
