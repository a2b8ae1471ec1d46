package volumes

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/names"
	"github.com/grangemesh/grange/node/volumes/readers"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Names of volumes are the mesh's: what is not here may be elsewhere.

// Find returns one volume of this node; ErrNotFound says which node has the name, if
// one has, also of a volume that this node has released.
func (v *Volumes) Find(ctx context.Context, name string) (terms.View, error) {
	view, err := v.Get(name)
	if view.State == terms.StateReleased {
		_, body, unknown := v.records().Volume(ctx, name)
		if unknown != nil || body.State == catalog.Released {
			return view, nil
		}
		err = content.ErrNotFound
	}
	if err != nil {
		err = fmt.Errorf("volume %q: %w", name, v.names().Elsewhere(ctx, name))
	}
	return view, err
}

// read has this node read a volume as the bucket has it now; e is what is here under its name.
func (v *Volumes) read(ctx context.Context, e index.Entry, name, transport string) (created bool, err error) {
	d := v.device(name)
	q := readers.Ask{Name: name, Transport: transport, Old: e, Close: func() error { return v.close(ctx, name, false, nil) }}
	q.Served = d != nil && d.vol != nil && (transport == terms.Auto || (transport == terms.UBLK) == (d.disk != nil))
	from := readers.Source{Index: v.index, Records: v.records(), Bucket: v.bucket(), Base: v.cfg.Library.Stands, Farm: v.cfg.Farm, Now: v.cfg.Now, At: v.cfg.At}
	if e, created, err = from.Attach(ctx, q); err == nil && created {
		err = v.reattach(ctx, e, terms.Spec{Transport: transport})
	}
	return created, err
}

// names tells of those that are not here.
func (v *Volumes) names() names.Names {
	return names.Names{Records: v.records(), Index: v.index, Self: v.cfg.Self, Farm: v.cfg.Farm, Who: v.cfg.Who, Away: v.cfg.Away, Call: v.cfg.Call, Log: v.cfg.Log}
}

// Everywhere returns the volumes of the mesh that this node may know, by name: its own as it sees them, the others, and what
// it has released, as their records say. Who holds one is its Node; a released one has none.
func (v *Volumes) Everywhere(ctx context.Context) ([]terms.View, error) {
	all := map[string]terms.View{}
	for _, view := range v.List() {
		all[view.Name] = view
	}
	for r, body := range v.records().Volumes(ctx) {
		if own, here := all[r.Name]; !here || own.State == terms.StateReleased || own.State == terms.StateReading {
			view := terms.OfRecord(v.codec, r.Name, r.Farm, body)
			if view.Node != "" {
				view.NodeName = v.cfg.Called(body.Holder)
			}
			all[r.Name] = view
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b terms.View) int { return cmp.Compare(a.Name, b.Name) }), ctx.Err()
}

// Snapshots returns those of a volume, or of all with "", in the order of terms.CompareSnapshots.
func (v *Volumes) Snapshots(ctx context.Context, volume string) ([]terms.SnapshotView, error) {
	if err := content.CheckName(volume); volume != "" && err != nil {
		return nil, err
	}
	out := []terms.SnapshotView{}
	for _, body := range v.records().Snapshots(ctx, volume) {
		out = append(out, terms.OfSnapshot(v.codec, body))
	}
	slices.SortFunc(out, func(a, b terms.SnapshotView) int { return terms.CompareSnapshots(a.ID, b.ID) })
	return out, ctx.Err()
}

// FindSnapshot returns one snapshot of the mesh.
func (v *Volumes) FindSnapshot(ctx context.Context, id string) (terms.SnapshotView, error) {
	_, body, err := v.records().Snapshot(ctx, id)
	return terms.OfSnapshot(v.codec, body), err
}
