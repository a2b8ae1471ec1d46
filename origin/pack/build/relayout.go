package build

import (
	"context"
	"fmt"
	"iter"

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
