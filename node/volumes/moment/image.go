package moment

import (
	"context"
	"maps"
	"slices"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

// Image builds the root of the disk in the scope that cfg says, of the chunks that stand
// where that may refer to, and of those that it reads. progress may be nil.
func (m Moment) Image(ctx context.Context, cfg build.Config, progress func(done, total int64)) (catalog.Image, error) {
	size := content.ChunkSizeDefault
	if m.Head != nil {
		size = m.Head.Root.ChunkSize
	}
	stand, err := m.standing(ctx, cfg.Scope, pack.NewReader(cfg.Bucket).ReadNode)
	if err != nil {
		return catalog.Image{}, err
	}
	cfg.Size, cfg.ChunkSize, cfg.Lineage = m.Size, size, m.Lineage[:min(len(m.Lineage), content.LineageMax)]
	b, err := build.New(ctx, cfg)
	if err != nil {
		return catalog.Image{}, err
	}
	defer b.Abort()
	raw := make([]byte, size)
	for _, index := range slices.Sorted(maps.Keys(stand)) {
		off := int64(index) * int64(size)
		if at := stand[index]; at != (pack.Extent{}) {
			err = b.Keep(ctx, index, at)
		} else if err = m.Padded(ctx, raw, off); err == nil {
			err = b.Add(ctx, index, raw)
		}
		if err != nil {
			return catalog.Image{}, err
		}
		if progress != nil {
			progress(min(off+int64(size), m.Size), m.Size)
		}
	}
	head, stats, err := b.Finish(ctx)
	if err != nil {
		return catalog.Image{}, err
	}
	return catalog.Image{Head: head, Lineage: m.Lineage, Chunks: stats.Chunks, Stored: stats.StoredBytes}, nil
}

// standing are the chunks of a moment that may not be holes: where they lie, or nowhere for
// those that are to be read.
func (m Moment) standing(ctx context.Context, scope content.Scope, read fold.Nodes) (map[uint64]pack.Extent, error) {
	out := map[uint64]pack.Extent{}
	if m.Head != nil {
		if err := fold.Walk(ctx, read, m.Head, func(index uint64, at pack.Extent) error {
			if !at.Pack.Scope().Covers(scope) {
				at = pack.Extent{}
			}
			out[index] = at
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if m.At.Seq <= m.Base.Seq {
		return out, nil
	}
	touched, _, err := fold.Touched(m.Vol, m.Head, m.Base, m.At)
	for _, index := range touched {
		out[index] = pack.Extent{}
	}
	return out, err
}
