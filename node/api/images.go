package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) images(a huma.API) {
	images := s.cfg.Node.Images
	route(a, http.MethodGet, "/api/images", "images and tags, by name", func(ctx context.Context, _ *struct{}) (*Answer[[]Image], error) {
		list, err := images.List(ctx)
		return ok(list), err
	})
	route(a, http.MethodGet, "/api/images/{name}", "one image or tag", func(ctx context.Context, in *Named) (*Answer[Image], error) {
		i, err := images.Get(ctx, in.Name)
		return ok(i), err
	})
	route(a, http.MethodPut, "/api/images/{name}", "import an image", func(ctx context.Context, in *struct {
		Named
		Body ImportRequest
	}) (*Answer[Operation], error) {
		return accepted(images.Import(ctx, in.Name, in.Body))
	})
	route(a, http.MethodDelete, "/api/images/{name}", "delete an image or tag; absent is success", func(ctx context.Context, in *Named) (*Answer[Removed], error) {
		r, err := images.Remove(ctx, in.Name)
		return ok(r), err
	})
	route(a, http.MethodPut, "/api/images/{name}/tags/{tag}", "let a tag stand for the image", func(ctx context.Context, in *struct {
		Named
		Tag string `path:"tag" maxLength:"140"`
	}) (*Answer[Image], error) {
		i, err := images.Tag(ctx, in.Name, in.Tag)
		return ok(i), err
	})
	route(a, http.MethodPost, "/api/images/{name}/warm", "fetch all of an image into the cache", func(_ context.Context, in *Named) (*Answer[Operation], error) {
		return accepted(images.Warm(in.Name))
	})
	route(a, http.MethodPost, "/api/images/{name}/verify", "read all of an image at the origin and check it", func(_ context.Context, in *Named) (*Answer[Operation], error) {
		return accepted(images.Verify(in.Name))
	})
	route(a, http.MethodPost, "/api/images/{name}/export", "write an image to a file on the node's host", func(_ context.Context, in *struct {
		Named
		Body ExportRequest
	}) (*Answer[Operation], error) {
		return accepted(images.Export(in.Name, in.Body.File, in.Body.Force))
	})
	s.pins(a)
}

func (s *Server) pins(a huma.API) {
	route(a, http.MethodPut, "/api/images/{name}/pin", "keep an image's chunks in the cache", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, s.cfg.Node.Images.Pin(ctx, in.Name)
	})
	route(a, http.MethodDelete, "/api/images/{name}/pin", "let an image's chunks be evicted", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, s.cfg.Node.Images.Unpin(ctx, in.Name)
	})
}
