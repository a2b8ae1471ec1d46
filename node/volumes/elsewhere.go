package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/readers"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Names of volumes are the mesh's: what is not here may be elsewhere.

// Find returns one volume of this node; ErrNotFound says which node has the name, if
// one has, also of a volume that this node has released.
func (v *Volumes) Find(ctx context.Context, name string) (View, error) {
	view, err := v.Get(name)
	if view.State == terms.StateReleased {
		_, body, unknown := v.records().Volume(ctx, name)
		if unknown != nil || body.State == catalog.Released {
			return view, nil
		}
		err = content.ErrNotFound
	}
	if err != nil {
		err = fmt.Errorf("volume %q: %w", name, v.elsewhere(ctx, name))
	}
	return view, err
}

// read has this node read a volume beside its writer, as the bucket has it now; e is what is
// here under its name.
func (v *Volumes) read(ctx context.Context, e index.Entry, name, transport string) (created bool, err error) {
	d := v.device(name)
	q := readers.Ask{Name: name, Transport: transport, Old: e, Close: func() error { return v.close(ctx, name, false, nil) }}
	q.Served = d != nil && d.vol != nil && (transport == terms.Auto || (transport == terms.UBLK) == (d.disk != nil))
	from := readers.Source{Index: v.index, Records: v.records(), Bucket: v.bucket(), Library: v.cfg.Library, Farm: v.cfg.Farm, Now: v.cfg.Now, At: v.cfg.At}
	if e, created, err = from.Attach(ctx, q); err == nil && created {
		err = v.reattach(ctx, e, Spec{Transport: transport})
	}
	return created, err
}

// elsewhere says what became of a name that no volume here has: ErrNotFound, with who
// has it, or that nobody of the mesh has; ErrUnavailable when that can't be told.
func (v *Volumes) elsewhere(ctx context.Context, name string) error {
	r, body, err := v.records().Volume(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return fmt.Errorf("%w: no volume of the mesh has this name; `grange volume create` makes one, with --from or --size", content.ErrNotFound)
	case err != nil:
		return fmt.Errorf("%w here, and whether another node has it can't be told: %w", content.ErrNotFound, err)
	}
	return fmt.Errorf("%w on this node: %s", content.ErrNotFound, v.holding(ctx, r, body))
}

// removeElsewhere deletes a name that no volume here has. Who holds it has to do so,
// unless it is away, or the volume's folder is away from here, and this is forced: its
// data stay on their disk, under a name that is free.
func (v *Volumes) removeElsewhere(ctx context.Context, name string, spec RemoveSpec) error {
	r, body, err := v.records().Volume(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return v.purge(ctx, name, spec)
	case err != nil:
		return fmt.Errorf("it is not here, and whether another node has it can't be told: %w", err)
	}
	if !spec.Force || body.Holder != v.cfg.Self && !v.cfg.Away(ctx, body.Holder) {
		return v.held(ctx, r, body)
	}
	if err := v.cfg.Registry.Delete(ctx, r); err != nil {
		return fmt.Errorf("of farm %s: %w", r.Farm, err)
	}
	v.cfg.Log.Warn("the name of a volume is free that was given up by force", "volume", name, "holder", v.cfg.Who(body.Holder))
	return v.purge(ctx, name, spec)
}

// holding says who holds a name, since when, and the ways out.
func (v *Volumes) holding(ctx context.Context, r catalog.Record, body catalog.Volume) string {
	if body.Holder == v.cfg.Self {
		return terms.Missing(v.index.Path(index.Entry{Volume: body}), v.index.Has(body.ID), r)
	}
	return terms.Holding(v.cfg.Who(body.Holder), v.cfg.Away(ctx, body.Holder), r, body)
}

// held is the conflict with who holds a name by its record.
func (v *Volumes) held(ctx context.Context, r catalog.Record, body catalog.Volume) error {
	return &HeldError{Holder: v.cfg.Who(body.Holder), Policy: body.Policy, FoldedAt: body.FoldedAt, Text: v.holding(ctx, r, body)}
}

// taken says who has a name, where another was quicker to take it.
func (v *Volumes) taken(ctx context.Context, err error) error {
	var by *catalog.TakenError
	if !errors.As(err, &by) {
		return err
	}
	body, derr := catalog.DecodeVolume(v.codec, by.Current.Body)
	if derr != nil {
		return err
	}
	return v.held(ctx, by.Current, body)
}

// Everywhere returns the volumes of the mesh that this node may know, by name: its own as
// it sees them, the others, and what it has released, as their records say. Who holds one
// is its Node; a released one has none.
func (v *Volumes) Everywhere(ctx context.Context) ([]View, error) {
	all := map[string]View{}
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
	return slices.SortedFunc(maps.Values(all), func(a, b View) int { return cmp.Compare(a.Name, b.Name) }), ctx.Err()
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
