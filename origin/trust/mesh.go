package trust

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Secrets are what the members of a mesh share beside their certificates. Each
// is derived from the mesh key, so a backup of that key restores them. A field
// is zero for members that may not have it.
type Secrets struct {
	// Announce hides the roots of scope mesh and farm from those who carry the
	// DHT: members announce them under a keyed hash. Seeds don't have it.
	Announce [32]byte `cbor:"announce"`
	// Gossip encrypts the gossip of the member's farm.
	Gossip [32]byte `cbor:"gossip"`
	// Farms derives the gossip key of any farm. Admins have it, to write tokens.
	Farms [32]byte `cbor:"farms"`
}

// FoundMesh makes a mesh: its key, and the chain and secrets of its first
// member, an admin of the given farm.
func FoundMesh(member PublicKey, farm string, now time.Time) (PrivateKey, Chain, Secrets, error) {
	mesh := NewPrivateKey()
	chain, err := Signer{Key: mesh}.Issue(Grant{member, RoleAdmin, farm}, now)
	if err != nil {
		return PrivateKey{}, nil, Secrets{}, fmt.Errorf("found mesh: %w", err)
	}
	s := Secrets{Announce: mesh.derive("announce"), Farms: mesh.derive("farms")}
	return mesh, chain, s.For(RoleAdmin, farm), nil
}

// For returns the part of an admin's secrets that a new member of that role and
// farm gets.
func (s Secrets) For(role Role, farm string) Secrets {
	var out Secrets
	if role.IsMember() {
		out.Announce = s.Announce
		out.Gossip = PrivateKey{s.Farms}.derive("gossip " + farm)
	}
	if role == RoleAdmin {
		out.Farms = s.Farms
	}
	return out
}

// Statement is a member's signed word that it saw a version of a record at the
// origin, from which others tell how old their copy may be.
type Statement struct {
	Kind    content.Kind `cbor:"kind"`
	Name    string       `cbor:"name"`
	Version uint64       `cbor:"version"`
	// SeenAt is when the origin confirmed it, to the millisecond.
	SeenAt time.Time `cbor:"-"`
	Millis int64     `cbor:"seen"`
}

// State signs s.
func (s Signer) State(st Statement) ([]byte, error) {
	codec := content.NewCodec()
	st.Millis = st.SeenAt.UnixMilli()
	payload, err := codec.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("sign statement on %s %q: %w", st.Kind, st.Name, err)
	}
	return codec.Marshal(sealedWire{Payload: payload, Signature: s.Key.sign(labelStatement, payload), Chain: s.Chain})
}

// OpenStatement checks a statement: any member of the mesh may make one, a seed
// may not. One that claims to be from the future is refused.
func (v *Verifier) OpenStatement(b []byte, now time.Time) (Statement, error) {
	if len(b) > content.RecordSizeMax {
		return Statement{}, fmt.Errorf("statement of %d bytes: %w", len(b), content.ErrCorrupt)
	}
	codec := content.NewCodec()
	var sealed sealedWire
	var st Statement
	if err := codec.Unmarshal(b, &sealed); err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	if err := codec.Unmarshal(sealed.Payload, &st); err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	st.SeenAt = time.UnixMilli(st.Millis)
	id, err := v.Verify(sealed.Chain, st.SeenAt)
	switch {
	case err != nil:
		return Statement{}, fmt.Errorf("statement on %s %q: %w", st.Kind, st.Name, err)
	case !id.Role.IsMember() || st.SeenAt.After(now.Add(clockSkew)) || !id.Key.verify(labelStatement, sealed.Payload, sealed.Signature):
		return Statement{}, fmt.Errorf("statement on %s %q: %w", st.Kind, st.Name, content.ErrForbidden)
	}
	return st, nil
}
