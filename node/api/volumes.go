package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/origin/content"
)

func (s *Server) volumes(a huma.API) {
	vols := s.cfg.Node.Volumes
	if vols == nil {
		a = refusing(a, node.ErrNoVolumes)
	}
	lists(a, "/api/volumes", "the volumes of this node", func(v Volume) string { return v.Name }, func(context.Context) ([]Volume, error) {
		return vols.List(), nil
	})
	route(a, "GET /api/volumes/{name}", "one volume", func(ctx context.Context, in *Named) (*Answer[Volume], error) {
		v, err := vols.Find(ctx, in.Name)
		return ok(v), err
	})
	route(a, "PUT /api/volumes/{name}", "create a volume, or attach it here", func(ctx context.Context, in *struct {
		Named
		Body VolumeSpec
	}) (*Made[Volume], error) {
		v, created, err := vols.Put(ctx, in.Name, in.Body)
		if !created {
			return &Made[Volume]{http.StatusOK, "", v}, err
		}
		return made(http.StatusCreated, "/api/volumes/", v.Name, v), err
	}, http.StatusCreated, http.StatusOK)
	route(a, "POST /api/volumes/{name}/detach", "stop serving a volume; its data stays on this node", func(ctx context.Context, in *struct {
		Named
		Forced
	}) (*Answer[Volume], error) {
		v, err := vols.Detach(ctx, in.Name, in.Force)
		return ok(v), err
	})
	route(a, "DELETE /api/volumes/{name}", "delete a volume; absent is success", func(ctx context.Context, in *struct {
		Named
		Forced
		Purge bool `query:"purge" doc:"its snapshots too, of which this version makes none"`
	}) (*struct{}, error) {
		return nil, vols.Remove(ctx, in.Name, in.Force)
	})
}

// refusing has the routes that are registered with it answer why they do nothing here.
func refusing(a huma.API, why error) huma.API {
	g := huma.NewGroup(a)
	g.UseMiddleware(func(ctx huma.Context, _ func(huma.Context)) { huma.WriteErr(a, ctx, statusOf(why), content.Line(why)) })
	return g
}
