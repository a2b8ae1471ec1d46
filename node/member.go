package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// peersFile keeps the addresses of members for a restart.
const peersFile = "peers"

// openMember enters the mesh, or founds one.
func (n *Node) openMember(ctx context.Context) error {
	name, err := n.name()
	if err := n.unlessAwaited("--name", err); err != nil {
		return err
	}
	state, key, err := n.entry(name).Enter(ctx)
	if err != nil {
		return err
	}
	n.identity = key
	n.Membership, err = membership.Open(membership.Config{
		Dir: n.cfg.Dir, Identity: n.identity, Name: name, Catalog: n.catalog, Told: n.told,
		OnRevoked: n.revoked, OnRotated: n.rotated, OnRenewed: n.renewed,
		Incarnation: func() []byte { return n.signed }, OnIncarnation: n.heardOf, Now: n.cfg.Now, Log: n.cfg.Log,
	}, state)
	if err != nil {
		return err
	}
	n.signer, n.verifier = n.Membership.Signer(), n.Membership.Verifier()
	return nil
}

// name is what others are shown of this member.
func (n *Node) name() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "" // names are for people, who have the IDs too
	}
	return membership.NameOr(n.cfg.Name, host)
}

func (n *Node) entry(name string) membership.Entry {
	return membership.Entry{
		Dir: n.cfg.Dir, Name: name, Join: n.cfg.Join, Farm: n.cfg.Farm, FarmDefault: FarmDefault, Origin: n.cfg.originURL(),
		Bootstrap: n.cfg.Bootstrap, Now: n.cfg.Now, Log: n.cfg.Log,
	}
}

// catalog is where revocations outlive all members.
func (n *Node) catalog() (*catalog.Catalog, bool) {
	if w := n.origin.writer(); w != nil {
		return w, true
	}
	return n.origin.records(), false
}

func (n *Node) told(r catalog.Record, asked time.Time) {
	if err := n.Names.Told(r, asked); err != nil {
		n.cfg.Log.Debug("a revocation at the origin", "name", r.Name, "err", err)
	}
}

// revoked cuts off those who are no members any more, and has what was believed of
// others checked again.
func (n *Node) revoked(fresh []trust.PublicKey) {
	n.exchange.Recheck()
	for _, key := range fresh { // who has shown nothing is connected all the same
		n.swarm.Dismiss(identity.PeerID(key))
	}
	if n.farm != nil {
		n.farm.Recheck()
	}
	n.Names.Recheck()
}

// rotated goes over to new secrets.
func (n *Node) rotated(s trust.Secrets) {
	if n.farm == nil {
		return
	}
	if err := n.farm.Rotate(s.Gossip); err != nil {
		n.cfg.Log.Error("the farm's gossip stays with its old key until a restart", "err", err)
	}
}

// renewed shows another certificate from now on.
func (n *Node) renewed(chain trust.Chain) {
	if err := n.exchange.Present(chain); err != nil {
		n.cfg.Log.Error("members are shown the old certificate until a restart", "err", err)
	}
}

// reach is how the membership reaches others.
type reach struct {
	*exchange.Exchange
	swarm *swarm.Swarm
}

func (r reach) Peers() []peer.ID {
	var out []peer.ID
	for _, p := range r.swarm.Peers() {
		out = append(out, p.ID)
	}
	return out
}

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

// candidates are the members to ask: up to membersAsked, those of the farm and others half
// and half where there are enough of both.
func (n *Node) candidates() []candidate {
	near, far := n.connected()
	return share(near, far, membersAsked)
}

// connected are the other members of the farm, as its gossip has proved them, and those of other
// farms that have proved who they are on a connection, by byFarms. Seeds are left out: they read
// public content only.
func (n *Node) connected() (near, far []candidate) {
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
	return near, byFarms(far)
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
