package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// names registers the routes that need no token for public content: to anyone
// else what is not public is absent.
func (s *Server) names(a huma.API) {
	n := s.cfg.Node
	route(a, "GET /api/resolve/{name}", "what a name stands for", func(ctx context.Context, in *struct {
		Named
		IfNoneMatch
	}) (*Tagged[Resolved], error) {
		r, err := n.Names.Resolve(ctx, in.Name, isTrusted(ctx))
		if err != nil {
			return nil, err
		}
		return tagged(in.IfNoneMatch, r)
	})
	s.blocks(a)
	for _, path := range publicPaths() {
		s.mux.HandleFunc("OPTIONS "+path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	}
}

// publicPaths are where public content is shown to anyone, pages of other origins
// included.
func publicPaths() []string { return []string{"/api/resolve/", "/ipfs/"} }

func isPublic(path string) bool {
	return slices.ContainsFunc(publicPaths(), func(p string) bool { return strings.HasPrefix(path, p) })
}

// allowPages lets pages of any origin read an answer, as the fetch standard has it.
func allowPages(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "Content-Type, If-None-Match, Range, User-Agent, X-Requested-With")
	h.Set("Access-Control-Expose-Headers", "Content-Length, Content-Range, Etag, X-Ipfs-Path, X-Ipfs-Roots")
}
