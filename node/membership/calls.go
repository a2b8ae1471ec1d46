package membership

import (
	"context"
	"fmt"
	"time"

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
		return Answer(m.codec, body, func(q redeemRequest) (papers, error) { return m.redeem(from.ID, q) })
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
		return Answer(m.codec, body, func(struct{}) (papers, error) { return m.secretsFor(from.Identity) })
	case renewMethod:
		return Answer(m.codec, body, func(struct{}) (papers, error) { return m.renewFor(from.Identity) })
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

// papers are what a member is one with, and an admin's word that the secrets are those.
type papers struct {
	Chain    trust.Chain   `cbor:"chain"`
	Secrets  trust.Secrets `cbor:"secrets"`
	Rotation []byte        `cbor:"rotation"`
}

// rotation is the one that the secrets are of, for a member of that identity.
func (p papers) rotation(v *trust.Verifier, id trust.Identity, now time.Time) (trust.Rotation, error) {
	r, err := v.OpenRotation(p.Rotation, now)
	if err != nil {
		return r, err
	}
	return r, r.Admit(p.Secrets, id.Role, id.Farm)
}

// redeem answers a newcomer that shows an invite of this node. It has secrets in it, so
// it goes to nobody but the owner of the key that the invite is, or was, used for.
func (m *Membership) redeem(from peer.ID, q redeemRequest) (r papers, err error) {
	if err := m.admin("redeem invite"); err != nil {
		return r, err
	}
	if id := identity.PeerID(q.Subject); id != from {
		return r, fmt.Errorf("redeem invite: %w: for %s, and %s asks", content.ErrForbidden, id, from)
	}
	now := m.cfg.Now()
	if since, ok := m.verifier.Revoked(q.Subject); ok {
		return r, fmt.Errorf("redeem invite: %w: the key was revoked on %s; join with an empty --data", content.ErrForbidden, since.UTC().Format("2006-01-02"))
	}
	chain, err := m.invites.Redeem(q.Invite, q.Subject, now, func(g trust.Grant) (trust.Chain, error) {
		id := trust.Identity{Key: g.Subject, Role: g.Role, Farm: g.Farm}
		if _, err := m.secretsFor(id); err != nil && g.Role.IsMember() { // before the invite is spent
			return nil, err
		}
		signer, err := m.issuer(g.Role)
		if err != nil {
			return nil, err
		}
		return signer.Issue(g, now)
	})
	if err != nil {
		return r, err
	}
	id := chain.Identity()
	if id.Role.IsMember() {
		if r, err = m.secretsFor(id); err != nil {
			return r, err
		}
	}
	r.Chain = chain
	m.roll.proved(chain, "", now)
	m.cfg.Log.Info("a member joined", "peer", from, "role", id.Role, "farm", id.Farm)
	return r, nil
}
