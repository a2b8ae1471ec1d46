package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

func (s *Server) members(a huma.API) {
	n := s.cfg.Node
	route(a, "GET /api/peers", "this node and the members it knows", func(_ context.Context, in *Page) (*Answer[Peers], error) {
		page, _ := part(*in, n.Peers(), func(p Peer) string { return p.ID }, cmp.Compare[string])
		return answer(Peers{n.Self(), page}, nil)
	})
	route(a, "GET /api/peers/{peer}/ping", "reach a member, have it answer, and say by what way", func(ctx context.Context, in *struct {
		Peer  string `path:"peer" maxLength:"512" doc:"its peer ID, its name, the beginning of one, or a full multiaddr, percent-encoded"`
		Count int    `query:"count" minimum:"1" maximum:"100" default:"4" doc:"how many answers it is asked for"`
	}) (*Answer[Ping], error) {
		return answer(n.Ping(ctx, in.Peer, in.Count))
	})
	route(a, "GET /api/cache", "the chunks on this disk", func(context.Context, *struct{}) (*Answer[Cache], error) {
		return answer(n.Cache(), nil)
	})
	route(a, "POST /api/cache/evict", "make room: remove the least useful chunks that are not pinned", func(_ context.Context, in *struct{ Body EvictRequest }) (*Answer[Evicted], error) {
		freed := n.Evict(in.Body.Bytes)
		return answer(Evicted{freed, n.Cache()}, nil)
	})
	route(a, "GET /api/status", "how the node stands", func(context.Context, *struct{}) (*Answer[Status], error) {
		return answer(n.Status(), nil)
	})
	s.tokens(a)
	s.mesh(a)
}

// mesh has the routes by which an admin says who belongs to the mesh.
func (s *Server) mesh(a huma.API) {
	n := s.cfg.Node
	lists(a, "/api/members", "everybody whom this node and its peers have met", func(m Member) string { return m.ID }, func(ctx context.Context) ([]Member, error) {
		all := n.Membership.Members(ctx)
		for i := range all {
			all[i].Path = n.Path(all[i].ID)
		}
		return all, nil
	})
	route(a, "DELETE /api/members/{id}", "end a membership, for good", func(ctx context.Context, in *struct {
		ID     string `path:"id" maxLength:"128" doc:"a peer ID, a public key, a name, the beginning of one, or the ID of a token made here"`
		Myself bool   `query:"myself" doc:"although it is this node itself"`
	}) (*Answer[Revoked], error) {
		return answer(n.Membership.Revoke(ctx, in.ID, in.Myself))
	})
	route(a, "POST /api/mesh/rotate", "begin a new generation of the mesh's secrets", func(ctx context.Context, _ *struct{}) (*Answer[Rotated], error) {
		generation, err := n.Membership.Rotate(ctx)
		return answer(Rotated{generation.Number}, err)
	})
	route(a, "GET /api/mesh/key", "the mesh key, over the socket alone", func(ctx context.Context, _ *struct{}) (*Answer[MeshKey], error) {
		if err := onlyLocal(ctx); err != nil {
			return nil, err
		}
		key, err := n.Membership.MeshKey()
		if err != nil {
			return nil, err
		}
		return answer(MeshKey{key.FileText()}, nil)
	})
	route(a, "PUT /api/mesh/key", "bring the mesh key to this node, over the socket alone", func(ctx context.Context, in *struct{ Body MeshKey }) (*struct{}, error) {
		if err := onlyLocal(ctx); err != nil {
			return nil, err
		}
		key, err := trust.ParseKeyFile(in.Body.Key)
		if err != nil {
			return nil, err
		}
		return nil, n.Membership.ImportMeshKey(ctx, key)
	})
}

// onlyLocal fails unless the request came over the socket: a token that leaked is not to
// be worth the mesh.
func onlyLocal(ctx context.Context) error {
	if here, _ := ctx.Value(local{}).(bool); !here {
		return fmt.Errorf("mesh key: %w: it is handed out and taken over the node's socket alone; use `grange mesh export-key` or `import-key` on the node's host", content.ErrForbidden)
	}
	return nil
}

func (s *Server) tokens(a huma.API) {
	n := s.cfg.Node
	route(a, "POST /api/tokens", "make a join token", func(ctx context.Context, in *struct{ Body TokenRequest }) (*Answer[Token], error) {
		return answer(n.CreateToken(in.Body))
	}, http.StatusCreated)
	lists(a, "/api/tokens", "the join tokens that this node made", func(t Token) string { return t.ID }, func(context.Context) ([]Token, error) {
		return n.Tokens()
	})
	route(a, "DELETE /api/tokens/{id}", "make an unused token useless", func(_ context.Context, in *struct {
		ID string `path:"id" maxLength:"32"`
	}) (*struct{}, error) {
		return nil, n.Membership.RevokeToken(in.ID)
	})
}
