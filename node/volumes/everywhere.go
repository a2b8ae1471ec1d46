package volumes

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
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
	for _, r := range v.cfg.Registry.Volumes(ctx) {
		body, err := catalog.DecodeVolume(v.codec, r.Body)
		if err == nil && !own[r.Name] {
			out = append(out, v.viewRecord(r.Name, r.Farm, body))
		}
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Compare(a.Name, b.Name) })
	return out, ctx.Err()
}

// viewRecord is what a record says of a volume.
func (v *Volumes) viewRecord(name, farm string, body catalog.Volume) View {
	out := View{
		Name: name, Size: body.Size, From: body.From, Durability: body.Policy, ReadOnly: body.ReadOnly, Epoch: body.Epoch, State: State(body.State), Farm: farm,
		Root: v.rootOf(body.Head), FoldedAt: body.FoldedAt, FsUsed: body.FsUsed, Degrade: body.Degrade, Degraded: body.DegradedSince, Generation: body.Generation,
		Limits: Limits{body.IOPS, body.Rate},
	}
	if body.State == catalog.Attached {
		out.Node = idOf(body.Holder)
	}
	for _, holder := range body.Holders {
		out.Holders = append(out.Holders, idOf(holder))
	}
	return out
}

func idOf(key trust.PublicKey) string { return identity.PeerID(key).String() }

// rootOf is the name of a root, zero for that of a blank disk.
func (v *Volumes) rootOf(head *pack.Head) content.CID {
	if head == nil {
		return content.CID{}
	}
	root, err := head.Root.Encode(v.codec)
	if err != nil { // it was decoded
		return content.CID{}
	}
	return root.CID()
}

// Snapshots returns the snapshots of a volume, or of all with "", in the order of
// CompareSnapshots.
func (v *Volumes) Snapshots(ctx context.Context, volume string) ([]SnapshotView, error) {
	if volume != "" {
		if err := content.CheckName(volume); err != nil {
			return nil, err
		}
	}
	out := []SnapshotView{}
	for _, r := range v.cfg.Registry.Snapshots(ctx, volume) {
		if body, err := catalog.DecodeSnapshot(v.codec, r.Name, r.Body); err == nil {
			out = append(out, v.viewSnapshot(body))
		}
	}
	slices.SortFunc(out, func(a, b SnapshotView) int { return CompareSnapshots(a.ID, b.ID) })
	return out, ctx.Err()
}

// FindSnapshot returns one snapshot of the mesh.
func (v *Volumes) FindSnapshot(ctx context.Context, id string) (SnapshotView, error) {
	if err := content.KindSnapshot.CheckName(id); err != nil {
		return SnapshotView{}, err
	}
	r, err := v.cfg.Registry.Snapshot(ctx, id)
	if err != nil {
		return SnapshotView{}, fmt.Errorf("snapshot %s: %w", id, err)
	}
	body, err := catalog.DecodeSnapshot(v.codec, r.Name, r.Body)
	return v.viewSnapshot(body), err
}

func (v *Volumes) viewSnapshot(s catalog.Snapshot) SnapshotView {
	out := SnapshotView{
		ID: s.Ref().RecordName(), Volume: s.Volume, Number: s.Number, Label: s.Label, Size: s.Size, Created: s.Created, Durable: s.Durable, Orphan: s.Orphan,
		Parent: s.Parent, Root: v.rootOf(s.Head), FsUsed: s.FsUsed,
	}
	for _, segment := range s.Segments {
		out.Bytes.Bucket += segment.Bytes
	}
	if !s.Durable {
		out.Node = idOf(s.Holder)
	}
	return out
}

// CompareSnapshots orders the names of snapshots: by volume, and of one by number.
func CompareSnapshots(a, b string) int {
	va, na, _ := strings.Cut(a, "@")
	vb, nb, _ := strings.Cut(b, "@")
	return cmp.Or(cmp.Compare(va, vb), cmp.Compare(len(na), len(nb)), cmp.Compare(na, nb))
}
