package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// Two nodes of one identity, as of a data folder that was copied, would both serve what
// is one's. Each start of a node is an incarnation, signed with its key. A node that
// starts elsewhere than its folder says looks there first, for who answers by that
// identity; members tell each other the incarnation that they heard before, and who
// hears of another of its own looks where that is. Of two that live the later start ends.
//
// This sees no copy that neither can dial the other nor has a member in common with it;
// and which is the later hangs on their clocks, where both run already.

const (
	// twinMethod asks a node for its incarnation, and says the asker's.
	twinMethod = "twin"
	// twinTimeout bounds the look for another: who moved to another address waits for it
	// once.
	twinTimeout = 2 * time.Second
	// twinsMax is how many others of one identity are told apart.
	twinsMax = 16

	purposeIncarnation trust.Purpose = "grange incarnation 1"
)

// incarnation is one start of a node's process.
type incarnation struct {
	_      struct{} `cbor:",toarray"`
	Number uint64   // random
	Began  int64    // in Unix milliseconds
	Addrs  []string
}

// signedIncarnation is how it travels.
type signedIncarnation struct {
	_         struct{} `cbor:",toarray"`
	Body      []byte
	Signature []byte
}

// before orders incarnations of one identity, for both of them alike.
func (i incarnation) before(j incarnation) bool {
	return i.Began < j.Began || i.Began == j.Began && i.Number < j.Number
}

// begin makes this start's incarnation, unless another node has this one's identity where
// its folder was last served.
func (n *Node) begin(ctx context.Context) error {
	n.incarnation = incarnation{Number: rand.Uint64(), Began: n.started.UnixMilli(), Addrs: n.swarm.Addrs()}
	body, err := n.codec.Marshal(n.incarnation)
	if err == nil {
		n.signed, err = n.codec.Marshal(signedIncarnation{Body: body, Signature: n.signer.Attest(purposeIncarnation, body)})
	}
	if err != nil {
		return err
	}
	elsewhere := slices.DeleteFunc(slices.Clone(n.Membership.State().Place), func(a string) bool { return slices.Contains(n.incarnation.Addrs, a) })
	if other, ok := n.visit(ctx, elsewhere); ok {
		return n.isTwin(other)
	}
	if err := n.Membership.Moved(n.incarnation.Addrs); err != nil {
		n.cfg.Log.Warn("a copy of this data folder would not find this node", "err", err)
	}
	return nil
}

func (n *Node) ownIncarnation(b []byte) (i incarnation, err error) {
	var s signedIncarnation
	if err = n.codec.Unmarshal(b, &s); err == nil {
		err = n.codec.Unmarshal(s.Body, &i)
	}
	if err == nil && !n.identity.Public().Attested(purposeIncarnation, s.Body, s.Signature) {
		err = fmt.Errorf("incarnation: %w", content.ErrForbidden)
	}
	return i, err
}

// visit asks who answers by this node's identity at addresses that are not its own.
func (n *Node) visit(ctx context.Context, addrs []string) (other incarnation, ok bool) {
	info := peer.AddrInfo{ID: n.swarm.ID()}
	for _, a := range addrs {
		if x, err := swarm.ParseAddr(a); err == nil && x.ID == info.ID {
			info.Addrs = append(info.Addrs, x.Addrs...)
		}
	}
	if len(info.Addrs) == 0 {
		return other, false
	}
	ctx, cancel := context.WithTimeout(ctx, twinTimeout)
	defer cancel()
	as := membership.Visitor{Identity: trust.NewPrivateKey(), Verifier: n.verifier, Now: n.cfg.Now, Log: slog.New(slog.DiscardHandler)}
	err := as.Visit(ctx, func(ctx context.Context, s *swarm.Swarm, x *exchange.Exchange) error {
		if err := s.Connect(ctx, info); err != nil {
			return err
		}
		b, err := x.Call(ctx, info.ID, twinMethod, n.signed)
		if err == nil {
			other, err = n.ownIncarnation(b)
		}
		return err
	})
	return other, err == nil && other.Number != n.incarnation.Number
}

// heardOf takes an incarnation that is said to be of this node's identity.
func (n *Node) heardOf(b []byte) {
	other, err := n.ownIncarnation(b)
	if err != nil || other.Number == n.incarnation.Number {
		return
	}
	select {
	case n.twins <- other:
	default: // one is looked for already
	}
}

func (n *Node) answerTwin(b []byte) ([]byte, error) {
	other, err := n.ownIncarnation(b)
	if err != nil {
		return nil, err
	}
	if other.Number != n.incarnation.Number {
		n.warnOfTwin(other)
		n.heardOf(b)
	}
	return n.signed, nil
}

func (n *Node) warnOfTwin(other incarnation) {
	n.cfg.Log.Warn("another node has this one's identity, as a copy of its data folder has; the later of the two refuses to serve",
		"other", other.Addrs, "here", n.incarnation.Addrs)
}

func (n *Node) isTwin(other incarnation) error {
	return fmt.Errorf("%w: another node has the identity of this one, as a copy of its data folder has: it serves at %s, and this one, at %s, came later and does not; give it an empty --data and a token of its own",
		content.ErrConflict, strings.Join(other.Addrs, ", "), strings.Join(n.incarnation.Addrs, ", "))
}

// keepSingle ends with an error when another node has this one's identity, and was there
// before it.
func (n *Node) keepSingle(ctx context.Context) error {
	var looked []uint64 // those that were found or not; of one identity there are few
	for {
		select {
		case said := <-n.twins:
			if slices.Contains(looked, said.Number) {
				continue
			}
			looked = append(looked[max(0, len(looked)-twinsMax):], said.Number)
			other, ok := n.visit(ctx, said.Addrs)
			switch {
			case ok && other.before(n.incarnation):
				return n.isTwin(other)
			case ok:
				n.warnOfTwin(other)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
