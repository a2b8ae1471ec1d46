package trust

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Pack is what a member vouches for when it has stored a pack: that it hashed the
// frames which the directory lists, and put them where the directory says.
type Pack struct {
	// ID of the pack, by which readers ask for it.
	ID string
	// Scope that the pack lies in.
	Scope content.Scope
	// Directory is the digest of the whole directory.
	Directory content.CID
}

type packWire struct {
	Magic     string        `cbor:"magic"`
	ID        string        `cbor:"id"`
	Scope     content.Scope `cbor:"scope"`
	Directory content.CID   `cbor:"directory"`
	SignedAt  int64         `cbor:"signed"`
}

const packMagic = "grange-pack-signature/1"

// MayStore reports whether others refer to packs of that scope on this word alone: a
// publisher's for the scopes of images, each member's within its own farm.
func (id Identity) MayStore(s content.Scope) bool {
	switch s {
	case content.Public(), content.Mesh():
		return id.Role.rank() >= RolePublisher.rank()
	}
	return id.Role.IsMember() && s.Farm() != "" && s.Farm() == id.Farm
}

// SealPack signs p. The time is kept to the millisecond.
func (s Signer) SealPack(p Pack, at time.Time) ([]byte, error) {
	if id := s.Identity(); !id.MayStore(p.Scope) {
		return nil, fmt.Errorf("sign pack %s: %w: this member's certificate has role %q of farm %q", p.ID, content.ErrForbidden, id.Role, id.Farm)
	}
	b, err := s.seal(labelPack, packWire{packMagic, p.ID, p.Scope, p.Directory, at.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("sign pack %s: %w", p.ID, err)
	}
	return b, nil
}

// OpenPack checks that b is the word of a member that may give it, for exactly p,
// and returns when it was given. Seen is when the store had the pack, as for Open:
// a revoked signer is believed in what was there before. Undecodable bytes
// are ErrCorrupt, anything that does not hold is ErrForbidden.
func (v *Verifier) OpenPack(b []byte, p Pack, seen, now time.Time) (time.Time, error) {
	var w packWire
	sealed, err := unseal(b, &w)
	at := time.UnixMilli(w.SignedAt)
	var id Identity
	switch {
	case err != nil:
	case w.Magic != packMagic || (Pack{w.ID, w.Scope, w.Directory}) != p:
		err = fmt.Errorf("%w: it is for %.200q, scope %s, directory %s", content.ErrForbidden, w.ID, w.Scope, w.Directory.Short())
	default:
		if id, err = v.signer(labelPack, sealed, at, seen, now); err == nil && !id.MayStore(p.Scope) {
			err = fmt.Errorf("%w: signed by a %s of farm %q", content.ErrForbidden, id.Role, id.Farm)
		}
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("signature of pack %s: %w", p.ID, err)
	}
	return at, nil
}
