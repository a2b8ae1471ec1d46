package api

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/swarm"
)

func (s *Server) members(a huma.API) {
	n := s.cfg.Node
	route(a, "GET /api/peers", "this node and the members it knows", func(_ context.Context, in *Page) (*Answer[Peers], error) {
		page, err := part(*in, n.Peers(), func(p Peer) string { return p.ID }, cmp.Compare[string])
		return answer(Peers{n.Self(), page.page}, err)
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
	lists(a, "/api/members", "everybody whom this node and its peers have met", func(m Member) string { return m.ID }, func(ctx context.Context) ([]Member, error) { return n.Members(ctx), nil })
	lists(a, "/api/farms", "their farms, and how the members of each are reached", func(f Farm) string { return f.Farm }, func(ctx context.Context) ([]Farm, error) { return farmsOf(n.Members(ctx)), nil })
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

// Farm is one, as this node sees it.
type Farm struct {
	Farm    string `json:"farm" doc:"empty for those of none, which are seeds"`
	Members int    `json:"members" doc:"those that were not revoked"`
	LAN     int    `json:"lan" doc:"that are connected with this node through a subnet that both are in"`
	Direct  int    `json:"direct" doc:"from address to address"`
	Relayed int    `json:"relayed" doc:"through a third member"`
	Away    int    `json:"away" doc:"and that are not connected with it"`
	Revoked int    `json:"revoked,omitempty"`
}

// farmsOf counts members by farm.
func farmsOf(all []Member) []Farm {
	of := map[string]*Farm{}
	for _, m := range all {
		f := of[m.Farm]
		if f == nil {
			f = &Farm{Farm: m.Farm}
			of[m.Farm] = f
		}
		f.Members++
		switch {
		case m.State == membership.StateRevoked:
			f.Members--
			f.Revoked++
		case m.Way == string(swarm.LAN):
			f.LAN++
		case m.Way == string(swarm.Direct):
			f.Direct++
		case m.Way == string(swarm.Through):
			f.Relayed++
		case m.State != membership.StateSelf:
			f.Away++
		}
	}
	out := []Farm{}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		out = append(out, *of[name])
	}
	return out
}
