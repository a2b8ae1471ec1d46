package records

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// OfVolumes is the volumes.Registry of a node of a farm.
type OfVolumes struct {
	*Names
	Farm string
}

// listPage is how many records are taken at once where all are looked through: what the
// origin lists is asked for anew for each page, 1,000 names at a time.
const listPage = 10_000

func (x OfVolumes) Volume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.Lookup(ctx, content.KindVolume, name, true)
	return k.Record, err
}

func (x OfVolumes) SureVolume(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.Lookup(ctx, content.KindVolume, name, true)
	if (err == nil || k.Tombstone) && !x.Sure(k) {
		return catalog.Record{}, fmt.Errorf("%w: one member alone says what it is", content.ErrUnavailable)
	}
	return k.Record, err
}

func (x OfVolumes) Snapshot(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.Lookup(ctx, content.KindSnapshot, name, true)
	return k.Record, err
}

func (x OfVolumes) Snapshots(ctx context.Context, volume string) []catalog.Record {
	begin := ""
	if volume != "" {
		begin = volume + "@"
	}
	return x.All(ctx, content.KindSnapshot, begin)
}

func (x OfVolumes) Volumes(ctx context.Context) []catalog.Record {
	return x.All(ctx, content.KindVolume, "")
}

// All returns the records of a kind whose names begin so.
func (n *Names) All(ctx context.Context, kind content.Kind, begin string) (out []catalog.Record) {
	after := ""
	for more := true; more; {
		var page []Known
		page, more = n.List(ctx, kind, begin, after, listPage)
		for _, k := range page {
			out, after = append(out, k.Record), k.Name
		}
		more = more && len(page) > 0
	}
	return out
}

func (x OfVolumes) Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error) {
	ch.Farm = x.Farm
	return x.Names.Commit(ctx, ch)
}

// OfInstances is the instance.Registry of a node.
type OfInstances struct{ *Names }

func (x OfInstances) Instance(ctx context.Context, name string) (catalog.Record, error) {
	k, err := x.Lookup(ctx, content.KindInstance, name, true)
	return k.Record, err
}

func (x OfInstances) Instances(ctx context.Context) []catalog.Record {
	return x.All(ctx, content.KindInstance, "")
}

func (x OfInstances) Commit(ctx context.Context, name string, base *catalog.Record, farm string, body []byte) (catalog.Record, error) {
	return x.Names.Commit(ctx, catalog.Change{Kind: content.KindInstance, Name: name, Farm: farm, Base: base, Body: body})
}

// Delete writes a tombstone over a record.
func (n *Names) Delete(ctx context.Context, base catalog.Record) error {
	_, err := n.Commit(ctx, catalog.Change{Kind: base.Kind, Name: base.Name, Farm: base.Farm, Base: &base, Delete: true})
	return err
}
