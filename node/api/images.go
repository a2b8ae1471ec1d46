package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) images(a huma.API) {
	images := s.cfg.Node.Images
	route(a, "GET /api/images", "images and tags, by name", func(ctx context.Context, in *struct {
		Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"at most so many"`
		After string `query:"after" maxLength:"255" doc:"what comes behind this one, which need not be there any more"`
		IfNoneMatch
	}) (*Listed[Image], error) {
		page, more, err := images.List(ctx, in.After, in.Limit)
		link := ""
		if more && len(page) > 0 {
			link = nextPage(in.Limit, page[len(page)-1].Name)
		}
		return listed(in.IfNoneMatch, page, link, err)
	})
	route(a, "GET /api/images/{name}", "one image or tag", func(ctx context.Context, in *struct {
		Named
		Holders bool `query:"holders" doc:"and who has some of it, which may take half a second to ask"`
		IfNoneMatch
	}) (*Tagged[Image], error) {
		find := images.Get
		if in.Holders {
			find = images.Holders
		}
		i, err := find(ctx, in.Name)
		return tagged(in.IfNoneMatch, i, err)
	})
	route(a, "PUT /api/images/{name}", "import an image", func(ctx context.Context, in *With[ImportRequest]) (*Made[Operation], error) {
		return accepted(images.Import(ctx, in.Name, in.Body))
	}, http.StatusAccepted)
	named(a, "DELETE /api/images/{name}", "delete an image or tag; absent is success", images.Remove)
	route(a, "PUT /api/images/{name}/tags/{tag}", "let a tag stand for the image", func(ctx context.Context, in *struct {
		Named
		Tag string `path:"tag" maxLength:"270"`
	}) (*Answer[Image], error) {
		return answer(images.Tag(ctx, in.Name, in.Tag))
	})
	s.imageWork(a)
	route(a, "PUT /api/images/{name}/pin", "keep an image's chunks in the cache", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, images.Pin(ctx, in.Name)
	})
	route(a, "DELETE /api/images/{name}/pin", "let an image's chunks be evicted", func(ctx context.Context, in *Named) (*struct{}, error) {
		return nil, images.Unpin(ctx, in.Name)
	})
}

// imageWork registers what is done to an image in the background.
func (s *Server) imageWork(a huma.API) {
	images := s.cfg.Node.Images
	route(a, "POST /api/images/{name}/warm", "fetch all of an image into the cache", func(_ context.Context, in *struct {
		Named
		All bool `query:"all" doc:"into those of all members of this farm"`
	}) (*Made[Operation], error) {
		if in.All {
			return accepted(images.WarmAll(in.Name))
		}
		return accepted(images.Warm(in.Name))
	}, http.StatusAccepted)
	route(a, "POST /api/images/{name}/verify", "read all of an image at the origin and check it", func(_ context.Context, in *Named) (*Made[Operation], error) {
		return accepted(images.Verify(in.Name))
	}, http.StatusAccepted)
	route(a, "POST /api/images/{name}/export", "write an image to a file on the node's host", func(_ context.Context, in *With[ExportRequest]) (*Made[Operation], error) {
		return accepted(images.Export(in.Name, in.Body.File, in.Body.Force))
	}, http.StatusAccepted)
}
