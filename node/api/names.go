package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/origin/content"
)

// names registers the routes that need no token for public content: to anyone
// else what is not public is absent.
func (s *Server) names(a huma.API) {
	n := s.cfg.Node
	route(a, http.MethodGet, "/api/resolve/{name}", "what a name stands for", func(ctx context.Context, in *Named) (*Answer[Resolved], error) {
		r, err := n.Names.Resolve(ctx, in.Name, isTrusted(ctx))
		return ok(r), err
	})
	type block struct {
		ContentType  string `header:"Content-Type"`
		CacheControl string `header:"Cache-Control"`
		Etag         string `header:"Etag"`
		Body         []byte
	}
	route(a, http.MethodGet, "/ipfs/{cid}", "one verified block of public content", func(ctx context.Context, in *struct {
		CID    string `path:"cid" maxLength:"128"`
		Format string `query:"format" enum:"raw" required:"true"`
	}) (*block, error) {
		id, err := content.ParseCID(in.CID)
		if err != nil {
			return nil, err
		}
		v, err := n.PublicBlock(ctx, id)
		if err != nil {
			return nil, err
		}
		return &block{"application/vnd.ipld.raw", "public, max-age=29030400, immutable", `"` + in.CID + `.raw"`, v.Bytes()}, nil
	})
}
