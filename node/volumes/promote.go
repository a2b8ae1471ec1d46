package volumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

// Promote publishes what a reference stands for as an image. Of a volume that is attached
// here all goes into chunks first. What the image's scope may refer to is not sent again:
// for one of the volume's own farm that is everything.
func (v *Volumes) Promote(ctx context.Context, ref content.Ref, to PromoteSpec, progress Progress) error {
	if err := v.promote(ctx, ref, to, progress); err != nil {
		return fmt.Errorf("promote %s to image %q: %w", ref, to.Image, err)
	}
	return nil
}

func (v *Volumes) promote(ctx context.Context, ref content.Ref, to PromoteSpec, progress Progress) (err error) {
	if err := content.KindImage.CheckName(to.Image); err != nil {
		return err
	}
	if v.cfg.Publish == nil {
		return fmt.Errorf("%w: this node publishes no images", content.ErrForbidden)
	}
	if to.Scope.IsZero() {
		to.Scope = content.Mesh()
	}
	if a := v.device(ref.Name); ref.Kind == content.KindVolume && !ref.Folded && a != nil && a.folds != nil {
		if err := a.folds.run(ctx, fold.Chunks); err != nil {
			return err
		}
	}
	m, err := v.moment(ctx, ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	body, err := v.image(ctx, m, to.Scope, progress)
	if err == nil {
		body.Source = ref.String()
		err = v.cfg.Publish(ctx, to.Image, body, to.Replace)
	}
	return err
}

// image builds the root of a moment in a scope, of the chunks that stand where that may
// refer to, and of those that it reads.
func (v *Volumes) image(ctx context.Context, m moment, scope content.Scope, progress Progress) (catalog.Image, error) {
	store, err := v.readable()
	if err != nil {
		return catalog.Image{}, err
	}
	size := content.ChunkSizeDefault
	if m.head != nil {
		size = m.head.Root.ChunkSize
	}
	stand, err := v.standing(ctx, m, scope, pack.NewReader(store).ReadNode)
	if err != nil {
		return catalog.Image{}, err
	}
	b, err := build.New(ctx, build.Config{Bucket: store, Scope: scope, Size: m.size, ChunkSize: size, Signer: v.cfg.Signer, Lineage: m.lineage[:min(len(m.lineage), content.LineageMax)], Now: v.cfg.Now, Log: v.cfg.Log})
	if err != nil {
		return catalog.Image{}, err
	}
	defer b.Abort()
	raw := make([]byte, size)
	for _, index := range slices.Sorted(maps.Keys(stand)) {
		off := int64(index) * int64(size)
		if at := stand[index]; at != (pack.Extent{}) {
			err = b.Keep(ctx, index, at)
		} else if err = m.readPadded(ctx, raw, off); err == nil {
			err = b.Add(ctx, index, raw)
		}
		if err != nil {
			return catalog.Image{}, err
		}
		if progress != nil {
			progress(min(off+int64(size), m.size), m.size)
		}
	}
	head, stats, err := b.Finish(ctx)
	if err != nil {
		return catalog.Image{}, err
	}
	missing, err := pack.MissingPacks(ctx, store, b.Manifest(), nil)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: %d packs that it shares with the volume are gone; try again", content.ErrConflict, len(missing))
	}
	return catalog.Image{Head: head, Lineage: m.lineage, Chunks: stats.Chunks, Stored: stats.StoredBytes}, err
}

// standing are the chunks of a moment that may not be holes: where they lie, or nowhere for
// those that are to be read.
func (v *Volumes) standing(ctx context.Context, m moment, scope content.Scope, read fold.Nodes) (map[uint64]pack.Extent, error) {
	out := map[uint64]pack.Extent{}
	if m.head != nil {
		if err := fold.Walk(ctx, read, m.head, func(index uint64, at pack.Extent) error {
			if !at.Pack.Scope().Covers(scope) {
				at = pack.Extent{}
			}
			out[index] = at
			return nil
		}); err != nil {
			return nil, err
		}
	}
	if m.at.Seq <= m.base.Seq {
		return out, nil
	}
	changed, err := m.vol.Changed(m.base, m.at)
	if err != nil {
		return nil, err
	}
	for index := range changed {
		out[index] = pack.Extent{}
	}
	return out, nil
}
