package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// The calls that members make to each other, beside requests for content.
const (
	farmMethod    = "farm"
	resolveMethod = "resolve"
	commitMethod  = "commit"
	// callTimeout bounds one call to a member.
	callTimeout = 3 * time.Second
	// membersAsked bounds the members that one question goes to.
	membersAsked = 6
)

// neighbours tells the fetcher who is in the farm.
type neighbours struct{ n *Node }

// Live implements fetch.Members.
func (x neighbours) Live() []peer.ID {
	if x.n.farm == nil {
		return []peer.ID{x.n.swarm.ID()}
	}
	return x.n.farm.Live()
}

// violationBan is how long a stranger that broke the protocol is shut out: it may
// be a member of another version, whose operator needs time, and not a day.
const violationBan = time.Hour

// violated deals with a peer that broke the protocol. One of this farm is only
// complained of: its operator is ours.
func (n *Node) violated(id peer.ID, err error) {
	who, ok := n.exchange.Identity(id)
	near := ok && who.Farm == n.Farm() || slices.Contains(neighbours{n}.Live(), id)
	n.cfg.Log.Warn("a peer broke the protocol", "peer", id, "of_this_farm", near, "err", err)
	if !near {
		n.swarm.Ban(id, violationBan)
	}
}

// followFarm tells the swarm where the farm's members are to be found.
func (n *Node) followFarm(ctx context.Context) {
	changed := n.farm.Watch(ctx)
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		for _, m := range n.farm.Members() {
			for _, a := range m.Addrs {
				if info, err := swarm.ParseAddr(a); err == nil && info.ID == m.ID && m.ID != n.swarm.ID() {
					n.swarm.Learn(info)
				}
			}
		}
	}
}

// answerer answers the calls of other members.
type answerer struct{ n *Node }

type resolveRequest struct {
	Kind content.Kind `cbor:"kind"`
	Name string       `cbor:"name"`
}

type commitRequest struct {
	Sealed []byte `cbor:"record"`
	ETag   string `cbor:"etag"`
}

// Call implements exchange.Answerer.
func (x answerer) Call(ctx context.Context, from exchange.Peer, method string, body []byte) ([]byte, error) {
	switch method {
	case farmMethod:
		return []byte(x.n.Farm()), nil
	case resolveMethod:
		return x.resolve(ctx, from, body)
	case commitMethod:
		return x.commit(ctx, from, body)
	}
	return x.n.member.Call(ctx, from, method, body)
}

// resolve answers with a record that this node holds, and its word on when it saw
// it at the origin. What the asker may not read is absent.
func (x answerer) resolve(_ context.Context, from exchange.Peer, body []byte) ([]byte, error) {
	var req resolveRequest
	if err := x.n.codec.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	k, ok := x.n.Names.Held(req.Kind, req.Name)
	if !ok || !from.Identity.MayRead(k.scope) && !k.Tombstone {
		return nil, fmt.Errorf("%s %.140q: %w", req.Kind, req.Name, content.ErrNotFound)
	}
	statement, err := x.n.signer.State(trust.Statement{Kind: k.Kind, Name: k.Name, Version: k.Version, SeenAt: k.SeenAt})
	if err != nil {
		return nil, err
	}
	return x.n.codec.Marshal(heard{k.Sealed, statement, k.ETag})
}

// commit writes a record for a member that can write to no origin: its own record, as the
// signature says, which only it could have made.
func (x answerer) commit(ctx context.Context, from exchange.Peer, body []byte) ([]byte, error) {
	var req commitRequest
	if err := x.n.codec.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	e, err := x.n.verifier.Open(req.Sealed, x.n.cfg.Now(), x.n.cfg.Now())
	if err != nil {
		return nil, err
	}
	if e.Signer.Key != from.Identity.Key {
		return nil, fmt.Errorf("commit %s %q: %w: signed by another than the asker", e.Kind, e.Name, content.ErrForbidden)
	}
	c := x.n.origin.writer()
	if c == nil {
		return nil, fmt.Errorf("commit %s %q: %w: no origin to write to here either", e.Kind, e.Name, content.ErrUnavailable)
	}
	r, err := c.Submit(ctx, req.Sealed, req.ETag)
	if err != nil {
		return nil, err
	}
	if err := x.n.Names.Confirmed(r); err != nil {
		return nil, err
	}
	return x.n.codec.Marshal(heard{Sealed: r.Sealed, ETag: r.ETag})
}

// candidates are the members to ask: up to membersAsked, of the farm and of
// others, half and half where there are enough of both.
func (n *Node) candidates() []peer.ID {
	near := slices.DeleteFunc(slices.Clone(neighbours{n}.Live()), func(id peer.ID) bool { return id == n.swarm.ID() })
	var far []peer.ID
	for _, p := range n.swarm.Peers() {
		if !slices.Contains(near, p.ID) {
			far = append(far, p.ID)
		}
	}
	return share(near, far, membersAsked)
}

// share takes up to n of both, near ones first, and as many of each as fit.
func share[T any](near, far []T, n int) []T {
	fromFar := min(len(far), max(n/2, n-len(near)))
	return slices.Concat(near[:min(len(near), n-fromFar)], far[:fromFar])
}

// ask calls candidates at once and returns the first limit answers, in the order
// in which they came.
func (n *Node) ask(ctx context.Context, method string, body []byte, limit int) [][]byte {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ids := n.candidates()
	answers := make(chan []byte, len(ids))
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if b, err := n.exchange.Call(ctx, id, method, body); err == nil {
				answers <- b
			}
		})
	}
	go func() { wg.Wait(); close(answers) }()
	var out [][]byte
	for b := range answers {
		if out = append(out, b); len(out) == limit {
			return out
		}
	}
	return out
}

// askInTurn calls candidates until one does not say that it is unable to: its
// answer, or its error, is the answer.
func (n *Node) askInTurn(ctx context.Context, method string, body []byte) ([]byte, error) {
	var unable []error
	for _, id := range n.candidates() {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		b, err := n.exchange.Call(call, id, method, body)
		late := call.Err() != nil
		cancel()
		if err == nil || !late && !errors.Is(err, content.ErrUnavailable) {
			return b, err
		}
		unable = append(unable, err)
	}
	return nil, fmt.Errorf("%w: none of %d members is able to: %w", content.ErrUnavailable, len(unable), errors.Join(unable...))
}

// askRecord asks members for a record.
func (n *Node) askRecord(ctx context.Context, kind content.Kind, name string, limit int) []heard {
	body, err := n.codec.Marshal(resolveRequest{kind, name})
	if err != nil {
		return nil
	}
	var out []heard
	for _, b := range n.ask(ctx, resolveMethod, body, limit) {
		var h heard
		if n.codec.Unmarshal(b, &h) == nil {
			out = append(out, h)
		}
	}
	return out
}
