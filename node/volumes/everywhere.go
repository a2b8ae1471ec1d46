package volumes

import (
	"cmp"
	"context"
	"slices"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// Everywhere returns the volumes of the mesh that this node may know, by name: its own as
// it sees them, the others as their records say. Who holds one is its Node; a released one
// has none.
func (v *Volumes) Everywhere(ctx context.Context) ([]View, error) {
	out := v.List()
	own := map[string]bool{}
	for _, view := range out {
		own[view.Name] = true
	}
	for r, body := range v.records().Volumes(ctx) {
		if !own[r.Name] {
			out = append(out, terms.OfRecord(v.codec, r.Name, r.Farm, body))
		}
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Compare(a.Name, b.Name) })
	return out, ctx.Err()
}

// Snapshots returns the snapshots of a volume, or of all with "", in the order of
// terms.CompareSnapshots.
func (v *Volumes) Snapshots(ctx context.Context, volume string) ([]SnapshotView, error) {
	if volume != "" {
		if err := content.CheckName(volume); err != nil {
			return nil, err
		}
	}
	out := []SnapshotView{}
	for _, body := range v.records().Snapshots(ctx, volume) {
		out = append(out, terms.OfSnapshot(v.codec, body))
	}
	slices.SortFunc(out, func(a, b SnapshotView) int { return terms.CompareSnapshots(a.ID, b.ID) })
	return out, ctx.Err()
}

// FindSnapshot returns one snapshot of the mesh.
func (v *Volumes) FindSnapshot(ctx context.Context, id string) (SnapshotView, error) {
	_, body, err := v.records().Snapshot(ctx, id)
	return terms.OfSnapshot(v.codec, body), err
}
