package membership

import (
	"context"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
)

// The calls of this package.
const (
	redeemMethod  = "redeem"  // a newcomer shows its invite
	greetMethod   = "trust"   // two members compare what they know
	revokedMethod = "revoked" // what one lacks of the other's revocations
	secretsMethod = "secrets" // the secrets of the newest generation
	renewMethod   = "renew"   // a certificate in place of one whose issuer was revoked
	rollMethod    = "roll"    // whom the other has met
)

// Call implements exchange.Answerer for the calls of this package; any other is
// ErrNotFound. Strangers may redeem, and nothing else.
func (m *Membership) Call(_ context.Context, from exchange.Peer, method string, body []byte) ([]byte, error) {
	if method == redeemMethod {
		return Answer(m.codec, body, func(q redeemRequest) (redeemReply, error) { return m.redeem(from.ID, q) })
	}
	if from.Identity.Role == "" {
		return nil, fmt.Errorf("call %.20q: %w", method, content.ErrNotFound)
	}
	switch method {
	case greetMethod:
		return Answer(m.codec, body, func(g greeting) (greeting, error) { return m.greeted(from.Identity, g) })
	case revokedMethod:
		return Answer(m.codec, body, m.lacking)
	case secretsMethod:
		return Answer(m.codec, body, func(struct{}) (secretsReply, error) { return m.shareSecrets(from.Identity) })
	case renewMethod:
		return Answer(m.codec, body, func(struct{}) (renewReply, error) { return m.renewFor(from.Identity) })
	case rollMethod:
		return Answer(m.codec, body, m.rollPage)
	}
	return nil, fmt.Errorf("call %.20q: %w", method, content.ErrNotFound)
}

// Answer decodes the body of a call, and encodes what fn says to it.
func Answer[Q, A any](codec *content.Codec, body []byte, fn func(Q) (A, error)) ([]byte, error) {
	var q Q
	if err := codec.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	a, err := fn(q)
	if err != nil {
		return nil, err
	}
	return codec.Marshal(a)
}

type redeemRequest struct {
	Invite  trust.Invite    `cbor:"invite"`
	Subject trust.PublicKey `cbor:"subject"`
}

// redeemReply is what a newcomer becomes a member with.
type redeemReply struct {
	Chain    trust.Chain   `cbor:"chain"`
	Secrets  trust.Secrets `cbor:"secrets"`
	Rotation []byte        `cbor:"rotation"`
}

// redeem answers a newcomer that shows an invite of this node. It has secrets in it, so
// it goes to nobody but the owner of the key that the invite is, or was, used for.
func (m *Membership) redeem(from peer.ID, q redeemRequest) (redeemReply, error) {
	if err := m.admin("redeem invite"); err != nil {
		return redeemReply{}, err
	}
	if id, err := identity.PeerID(q.Subject); err != nil || id != from {
		return redeemReply{}, fmt.Errorf("redeem invite: %w: for %s, and %s asks", content.ErrForbidden, MemberID(q.Subject), from)
	}
	now := m.cfg.Now()
	if since, ok := m.verifier.Revoked(q.Subject); ok {
		return redeemReply{}, fmt.Errorf("redeem invite: %w: the key was revoked on %s; join with an empty --data", content.ErrForbidden, since.UTC().Format("2006-01-02"))
	}
	chain, err := m.invites.Redeem(q.Invite, q.Subject, now, func(g trust.Grant) (trust.Chain, error) {
		id := trust.Identity{Key: g.Subject, Role: g.Role, Farm: g.Farm}
		if _, _, err := m.secretsFor(id); err != nil && g.Role.IsMember() { // before the invite is spent
			return nil, err
		}
		signer, err := m.issuer(g.Role)
		if err != nil {
			return nil, err
		}
		return signer.Issue(g, now)
	})
	if err != nil {
		return redeemReply{}, err
	}
	id := chain.Identity()
	r := redeemReply{Chain: chain}
	if id.Role.IsMember() {
		if r.Secrets, r.Rotation, err = m.secretsFor(id); err != nil {
			return redeemReply{}, err
		}
	}
	m.roll.proved(chain, "", now)
	m.cfg.Log.Info("a member joined", "peer", from, "role", id.Role, "farm", id.Farm)
	return r, nil
}
