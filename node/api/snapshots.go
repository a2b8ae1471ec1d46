package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

const snapshotsPath = "/api/snapshots"

func (s *Server) snapshots(a huma.API, vols *volumes.Volumes) {
	s.take(a, vols)
	s.changes(a, vols)
	route(a, "GET "+snapshotsPath, "snapshots of the mesh's volumes", func(ctx context.Context, in *struct {
		Page
		IfNoneMatch
		Volume string `query:"volume" maxLength:"270" doc:"of this volume alone"`
	}) (*Listed[Snapshot], error) {
		all, err := vols.Snapshots(ctx, in.Volume)
		page, link := part(in.Page, all, func(v Snapshot) string { return v.ID }, terms.CompareSnapshots)
		return listed(in.IfNoneMatch, page, also(link, "volume", in.Volume), err)
	})
	named(a, "GET "+snapshotsPath+"/{name}", "one snapshot", vols.FindSnapshot)
	route(a, "DELETE "+snapshotsPath+"/{name}", "delete a snapshot; absent is success", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, vols.RemoveSnapshot(ctx, in.Name)
	})
	route(a, "POST "+snapshotsPath+"/{name}/export", "write a snapshot to a file on the node's host", func(_ context.Context, in *With[ExportRequest]) (*Made[Operation], error) {
		return s.export(vols, snapshotRef(in.Name), in.Body)
	}, http.StatusAccepted)
	route(a, "POST "+snapshotsPath+"/{name}/promote", "publish a snapshot as an image", func(_ context.Context, in *With[PromoteSpec]) (*Made[Operation], error) {
		return s.promote(vols, snapshotRef(in.Name), in.Body)
	}, http.StatusAccepted)
}

func snapshotRef(id string) string { return string(content.KindSnapshot) + ":" + id }

// take registers the making of a snapshot, which is instant. That it is durable can be
// waited for as for other long work.
func (s *Server) take(a huma.API, vols *volumes.Volumes) {
	route(a, "POST "+volumesPath+"/{name}/snapshots", "name the state that a volume has now", func(ctx context.Context, in *struct {
		Named
		Wait string           `query:"wait" enum:"durable" doc:"durable: start an operation that ends when it is"`
		Body *SnapshotRequest `required:"false"`
	}) (*Made[Taken], error) {
		var spec terms.SnapshotSpec
		if in.Body != nil {
			spec.Label = in.Body.Label
		}
		v, err := vols.Snapshot(ctx, in.Name, spec)
		if err != nil {
			return nil, err
		}
		taken := made(http.StatusCreated, snapshotsPath+"/", v.ID, Taken{Snapshot: v})
		if in.Wait == "" || v.Durable {
			return taken, nil
		}
		op, err := s.work("snapshot", v.ID, func(ctx context.Context, _ terms.Progress) (string, error) {
			return "", vols.Settle(ctx, v.ID)
		})
		if err != nil {
			return nil, err
		}
		taken.Status, taken.Location, taken.Body.Operation = op.Status, op.Location, op.Body.ID
		return taken, nil
	}, http.StatusCreated, http.StatusAccepted)
}
