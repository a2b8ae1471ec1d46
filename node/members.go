package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// The calls that members make to each other, beside requests for content.
const (
	resolveMethod = "resolve"
	commitMethod  = "commit"
	// callTimeout bounds one call to a member.
	callTimeout = 3 * time.Second
	// membersAsked bounds the members that one question goes to.
	membersAsked = 6
)

// candidate is a member to ask.
type candidate struct {
	id  peer.ID
	who trust.Identity
}

// candidates are the members to ask: up to membersAsked, of the farm, as its gossip
// has proved them, and of others that have proved who they are on a connection; half
// and half where there are enough of both. Seeds are not asked: they read public
// content only.
func (n *Node) candidates() []candidate {
	var near, far []candidate
	if n.farm != nil {
		for _, m := range n.farm.Members() {
			if m.ID != n.swarm.ID() {
				near = append(near, candidate{m.ID, m.Identity})
			}
		}
	}
	for _, p := range n.swarm.Peers() {
		who, proved := n.peers.Of(p.ID)
		c := candidate{p.ID, who}
		switch {
		case !proved || !who.Role.IsMember() || slices.Contains(near, c):
		case who.Farm == n.Farm():
			near = append(near, c)
		default:
			far = append(far, c)
		}
	}
	return share(near, byFarms(far), membersAsked)
}

// byFarms orders candidates so that the first are each of another farm, then the
// second ones of each farm, and so on.
func byFarms(all []candidate) []candidate {
	turn := map[string]int{}
	turns := make(map[peer.ID]int, len(all))
	for _, c := range all {
		turns[c.id] = turn[c.who.Farm]
		turn[c.who.Farm]++
	}
	slices.SortStableFunc(all, func(a, b candidate) int { return turns[a.id] - turns[b.id] })
	return all
}

// share takes up to n of both, near ones first, and as many of each as fit.
func share[T any](near, far []T, n int) []T {
	fromFar := min(len(far), max(n/2, n-len(near)))
	return slices.Concat(near[:min(len(near), n-fromFar)], far[:fromFar])
}

// askRecord asks candidates for a record, all at once, and returns the first limit
// answers, in the order in which they came, each with who gave it.
func (n *Node) askRecord(ctx context.Context, q records.Question, limit int) (out []records.Answer) {
	body, err := n.codec.Marshal(q)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	members := n.candidates()
	answers := make(chan records.Answer, len(members))
	var wg sync.WaitGroup
	for _, c := range members {
		wg.Go(func() {
			said := records.Answer{Who: c.who}
			b, err := n.exchange.Call(ctx, c.id, resolveMethod, body)
			if err == nil && n.codec.Unmarshal(b, &said) == nil {
				answers <- said
			}
		})
	}
	go func() { wg.Wait(); close(answers) }()
	for a := range answers {
		if out = append(out, a); len(out) == limit {
			return out
		}
	}
	return out
}

// askLead asks a member of the farm for its own word on a record. One that is busy, or is
// none of this farm, can't give it.
func (n *Node) askLead(ctx context.Context, p plan.Peer, q records.Question) (a records.Answer, err error) {
	body, err := n.codec.Marshal(q)
	if err != nil {
		return a, err
	}
	id := peer.ID(p)
	b, err := n.exchange.Call(ctx, id, resolveMethod, body)
	who, ok := n.peers.Of(id)
	switch {
	case errors.Is(err, exchange.ErrDisconnected) || errors.Is(err, exchange.ErrStalled):
		return a, err
	case err != nil || !ok || !who.Role.IsMember() || who.Farm != n.Farm() || n.codec.Unmarshal(b, &a) != nil:
		return records.Answer{}, nil
	}
	a.Who = who
	return a, nil
}

// submit has a member write a record: one after the other, as all at once would race
// each other, until one does not say that it is unable to. Its answer, or its error, is
// the answer.
func (n *Node) submit(ctx context.Context, s records.Submission) (a records.Answer, err error) {
	body, err := n.codec.Marshal(s)
	if err != nil {
		return a, err
	}
	var unable []error
	for _, c := range n.candidates() {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		b, err := n.exchange.Call(call, c.id, commitMethod, body)
		late := call.Err() != nil
		cancel()
		if err == nil {
			err = n.codec.Unmarshal(b, &a)
			return a, err
		}
		if !late && !errors.Is(err, content.ErrUnavailable) {
			return a, err
		}
		unable = append(unable, err)
	}
	if len(unable) == 0 {
		return a, fmt.Errorf("%w: the origin can't be written from here, and no member is connected that might", content.ErrUnavailable)
	}
	return a, fmt.Errorf("%w: none of %d members is able to: %w", content.ErrUnavailable, len(unable), errors.Join(unable...))
}
