package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// redeemRequest and redeemReply are the bodies of the call by which a newcomer
// shows its invite.
type redeemRequest struct {
	Invite  trust.Invite    `cbor:"invite"`
	Subject trust.PublicKey `cbor:"subject"`
}

type redeemReply struct {
	Chain trust.Chain `cbor:"chain"`
}

const (
	redeemMethod = "redeem"
	// joinTimeout bounds a whole join: each bootstrap address is tried in turn.
	joinTimeout = 60 * time.Second
)

// redeem answers a newcomer that shows an invite of this node.
func (n *Node) redeem(body []byte) ([]byte, error) {
	var req redeemRequest
	if err := n.codec.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	st, err := n.invites.Redeem(req.Invite, req.Subject, n.cfg.Now())
	if err != nil {
		return nil, err
	}
	chain, err := n.signer.Issue(trust.Grant{Subject: req.Subject, Role: st.Role, Farm: st.Farm}, n.cfg.Now())
	if err != nil {
		return nil, err
	}
	n.cfg.Log.Info("a member joined", "key", req.Subject, "role", st.Role, "farm", st.Farm)
	return n.codec.Marshal(redeemReply{chain})
}

// join redeems a token with the members that it names.
func (c Config) join(ctx context.Context, identity trust.PrivateKey) (membership, error) {
	token, err := trust.ParseToken(c.Join, c.Now())
	if err != nil {
		return membership{}, fmt.Errorf("--join: %w", err)
	}
	s, err := swarm.New(swarm.Config{Identity: identity, Mesh: token.Mesh, Log: c.Log})
	if err != nil {
		return membership{}, err
	}
	defer s.Close()
	x, err := exchange.New(exchange.Config{Host: s.Host(), Verifier: trust.NewVerifier(token.Mesh), Now: c.Now, Log: c.Log})
	if err != nil {
		return membership{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	chain, err := c.redeemAt(ctx, s, x, token, identity)
	cancel()
	if err = errors.Join(err, <-ended); err != nil {
		return membership{}, fmt.Errorf("--join: %w", err)
	}
	id, err := trust.NewVerifier(token.Mesh).Verify(chain, c.Now())
	if err != nil || id.Key != identity.Public() {
		return membership{}, fmt.Errorf("--join: the certificate that came back: %w", errors.Join(content.ErrForbidden, err))
	}
	c.Log.Info("joined a mesh", "mesh", token.Mesh, "role", id.Role, "farm", id.Farm)
	return membership{Mesh: token.Mesh, Chain: chain, Secrets: token.Secrets, Origin: token.Origin, Bootstrap: token.Bootstrap}, nil
}

// redeemAt tries the token's addresses in turn, then those of the configuration.
func (c Config) redeemAt(ctx context.Context, s *swarm.Swarm, x *exchange.Exchange, token trust.Token, identity trust.PrivateKey) (trust.Chain, error) {
	codec := content.NewCodec()
	body, err := codec.Marshal(redeemRequest{token.Invite, identity.Public()})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, addr := range append(slices.Clone(token.Bootstrap), c.Bootstrap...) {
		info, err := swarm.ParseAddr(addr)
		if err == nil {
			err = s.Connect(ctx, info)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", addr, err))
			continue
		}
		b, err := x.Call(ctx, info.ID, redeemMethod, body)
		if errors.Is(err, content.ErrForbidden) { // it was refused, and asking elsewhere would not help
			return nil, err
		}
		var reply redeemReply
		if err == nil {
			err = codec.Unmarshal(b, &reply)
		}
		if err == nil {
			return reply.Chain, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, fmt.Errorf("%w: no member of the token answers: %w", content.ErrUnavailable, errors.Join(errs...))
}
