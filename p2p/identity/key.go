package identity

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// PeerID returns the peer ID of a member's key.
func PeerID(k trust.PublicKey) (peer.ID, error) {
	pub, err := crypto.UnmarshalEd25519PublicKey(k[:])
	if err != nil {
		return "", fmt.Errorf("peer ID of %s: %w", k, err)
	}
	return peer.IDFromPublicKey(pub)
}

// KeyOf returns the key that a peer ID is made of; another kind is content.ErrInvalid.
func KeyOf(id peer.ID) (trust.PublicKey, error) {
	public, err := id.ExtractPublicKey()
	if err != nil {
		return trust.PublicKey{}, fmt.Errorf("member %s: %w: %w", id, content.ErrInvalid, err)
	}
	raw, err := public.Raw()
	if err != nil || len(raw) != len(trust.PublicKey{}) {
		return trust.PublicKey{}, fmt.Errorf("member %s: %w: not an Ed25519 key", id, content.ErrInvalid)
	}
	return trust.PublicKey(raw), nil
}
