package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/p2p/identity"
)

const (
	// matchMethod asks a member which names match patterns.
	matchMethod = "match"
	// listLeadFor is how long one member of a farm lists names for the others: one that
	// keeps a change to itself does so no longer.
	listLeadFor = time.Minute
	// listLeads are asked in turn before a node lists by itself.
	listLeads = 3
)

// meshSize is about how many members the mesh has: those that this one knows to be here.
func (n *Node) meshSize() int { return len(n.Peers()) + 1 }

// matching asks the member of this farm that lists names for all now, which may be this
// one. Where that can't read the origin, as in a seed, members of other farms are asked.
func (n *Node) matching(ctx context.Context, patterns []follow.Pattern) (out []images.Match, err error) {
	var live []plan.Peer
	for _, id := range (neighbours{n}).Live() {
		live = append(live, plan.Peer(id))
	}
	order := plan.Rank(fmt.Sprint("follow ", n.cfg.Now().Unix()/int64(listLeadFor/time.Second)), live)
	if self := slices.Index(order, plan.Peer(n.swarm.ID())); self >= 0 {
		order = order[:self]
	}
	order = order[:min(len(order), listLeads)]
	if n.origin.readable() == nil {
		for _, c := range n.candidates() {
			order = append(order, plan.Peer(c.id))
		}
	}
	for _, p := range order {
		if out, err = n.askMatches(ctx, peer.ID(p), patterns); err == nil {
			return out, nil
		}
	}
	return n.Images.Matches(ctx, n.Membership.Identity(), patterns)
}

func (n *Node) askMatches(ctx context.Context, id peer.ID, patterns []follow.Pattern) (out []images.Match, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := n.codec.Marshal(patterns)
	if err == nil {
		body, err = n.exchange.Call(ctx, id, matchMethod, body)
	}
	if err == nil {
		err = n.codec.Unmarshal(body, &out)
	}
	return out, err
}

// farmMates are the other members of this farm: those that gossip, or that anybody has met.
func (n *Node) farmMates(ctx context.Context) (out []images.Neighbour) {
	for _, p := range n.FarmPeers() {
		out = append(out, images.Neighbour{ID: p.ID, Name: p.Name})
	}
	for _, m := range n.Membership.Members(ctx) {
		met := slices.ContainsFunc(out, func(o images.Neighbour) bool { return o.ID == m.ID })
		if m.Farm == n.Farm() && m.Role.IsMember() && m.State != membership.StateRevoked && m.State != membership.StateSelf && !met {
			out = append(out, images.Neighbour{ID: m.ID, Name: m.Name})
		}
	}
	return out
}

// callID asks a member, by its ID.
func (n *Node) callID(ctx context.Context, id, method string, body []byte) ([]byte, error) {
	to, err := peer.Decode(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return n.exchange.Call(ctx, to, method, body)
}

// holder says who a member is that has some of an image.
func (n *Node) holder(id peer.ID) images.Holder {
	h := images.Holder{ID: id.String(), Name: n.nameOf(id), Way: string(n.swarm.Path(id).Way)}
	if who, proved := n.peers.Of(id); proved { // it may have just come, and nobody have greeted it
		h.Farm = who.Farm
	} else if key, err := identity.KeyOf(id); err == nil {
		h.Farm = n.Membership.Who(key).Farm
	}
	return h
}
