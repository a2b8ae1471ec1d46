package node

import (
	"cmp"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/trust"
)

// Peer is another member.
type Peer struct {
	ID    string     `json:"id"`
	Farm  string     `json:"farm,omitempty" doc:"absent until this node has dealt with the member"`
	Role  trust.Role `json:"role,omitempty" doc:"absent until this node has dealt with the member"`
	State string     `json:"state" doc:"alive (in this farm), set aside (it failed or lied lately), or connected"`
	Addrs []string   `json:"addrs,omitempty"`
}

// Self is what the node says of itself.
type Self struct {
	ID    string     `json:"id"`
	Mesh  string     `json:"mesh"`
	Farm  string     `json:"farm"`
	Role  trust.Role `json:"role"`
	Addrs []string   `json:"addrs" doc:"full multiaddrs, as --bootstrap takes them"`
	// FarmAddr is what --farm-join of a neighbour takes.
	FarmAddr string    `json:"farm_addr,omitempty"`
	Revoked  time.Time `json:"revoked,omitzero" doc:"when this node learnt that it is no member any more"`
}

// Self describes this node.
func (n *Node) Self() Self {
	id := n.Membership.Identity()
	s := Self{ID: n.swarm.ID().String(), Mesh: n.verifier.Mesh().String(), Farm: id.Farm, Role: id.Role, Addrs: n.swarm.Addrs()}
	if n.farm != nil {
		s.FarmAddr = n.farm.Address()
	}
	s.Revoked, _ = n.verifier.Revoked(n.identity.Public())
	return s
}

// FarmPeers returns the live neighbours.
func (n *Node) FarmPeers() []Peer {
	out := []Peer{}
	if n.farm == nil {
		return out
	}
	aside := n.fetch.Aside()
	for _, m := range n.farm.Members() {
		if m.ID == n.swarm.ID() {
			continue
		}
		p := Peer{ID: m.ID.String(), Farm: m.Identity.Farm, Role: m.Identity.Role, State: "alive", Addrs: m.Addrs}
		if _, bad := aside[m.ID]; bad {
			p.State = "set aside"
		}
		out = append(out, p)
	}
	return out
}

// Peers returns the neighbours and the other members that this node is connected
// with, by farm. What a member has not yet said of itself is empty.
func (n *Node) Peers() []Peer {
	out := n.FarmPeers()
	for _, info := range n.swarm.Peers() {
		id := info.ID.String()
		if slices.ContainsFunc(out, func(p Peer) bool { return p.ID == id }) {
			continue
		}
		p := Peer{ID: id, State: "connected"}
		if who, ok := n.exchange.Identity(info.ID); ok {
			p.Farm, p.Role = who.Farm, who.Role
		}
		for _, a := range info.Addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Farm, b.Farm), cmp.Compare(a.ID, b.ID)) })
	return out
}

// Waiting says what the node waits for before it is ready: for neighbours and
// bootstrap members some seconds, so that its first reads find them.
func (n *Node) Waiting() []string {
	var out []string
	young := n.cfg.Now().Sub(n.started) < joinedWithin
	if young && len(n.cfg.FarmJoin) > 0 && len(n.FarmPeers()) == 0 {
		out = append(out, "a neighbour of the farm")
	}
	if young && len(n.cfg.Bootstrap)+len(n.Membership.State().Bootstrap) > 0 && len(n.swarm.Peers()) == 0 {
		out = append(out, "a member of the mesh")
	}
	if !n.Volumes.Opened() {
		out = append(out, "its volumes")
	}
	return out
}

// Bytes returns where this node's bytes came from since its start.
func (n *Node) Bytes() fetch.Bytes { return n.fetch.Bytes() }

// Cache is how the cache stands.
type Cache struct {
	Chunks int64 `json:"chunks"`
	Used   int64 `json:"used_bytes"`
	Quota  int64 `json:"quota_bytes"`
	Limit  int64 `json:"limit_bytes" doc:"what of the quota the disk has room for, beside what stays free for volumes"`
	Full   bool  `json:"full" doc:"true while chunks are passed on without being kept"`
}

// Cache describes the cache.
func (n *Node) Cache() Cache {
	s := n.cache.Stats()
	return Cache{Chunks: s.Chunks, Used: s.Disk, Quota: s.Quota, Limit: s.Limit, Full: s.Full}
}

// Evict makes room: it removes chunks that are not pinned, the least useful first,
// until they make that many bytes, and returns how many bytes it were.
func (n *Node) Evict(bytes int64) (freed int64) { return n.cache.Evict(bytes) }
