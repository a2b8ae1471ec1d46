package trust

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// FoundMesh makes a mesh: its key, and chain and secrets of its first admin.
func FoundMesh(member PublicKey, farm string, now time.Time) (PrivateKey, Chain, Secrets, error) {
	mesh := NewPrivateKey()
	chain, err := Signer{Key: mesh}.Issue(Grant{member, RoleAdmin, farm}, now)
	if err != nil {
		return PrivateKey{}, nil, Secrets{}, fmt.Errorf("found mesh: %w", err)
	}
	return mesh, chain, NewSecrets(1).For(RoleAdmin, farm), nil
}

// Statement is a member's signed word that it saw a version of a record at the
// origin, from which others tell how old their copy may be.
type Statement struct {
	Kind    content.Kind
	Name    string
	Version uint64
	Commit  Commit
	// SeenAt is when the origin confirmed it, to the millisecond.
	SeenAt time.Time
	// Signer is the member that says so, set by OpenStatement.
	Signer Identity
}

type statementWire struct {
	Kind    content.Kind `cbor:"kind"`
	Name    string       `cbor:"name"`
	Version uint64       `cbor:"version"`
	Commit  Commit       `cbor:"commit"`
	SeenAt  int64        `cbor:"seen"`
}

// State signs st.
func (s Signer) State(st Statement) ([]byte, error) {
	b, err := s.seal(labelStatement, statementWire{st.Kind, st.Name, st.Version, st.Commit, st.SeenAt.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("sign statement on %s %q: %w", st.Kind, st.Name, err)
	}
	return b, nil
}

// OpenStatement checks a statement: any member of the mesh may make one, a seed or who
// is revoked may not, nor one from the future. Errors are as of Open.
func (v *Verifier) OpenStatement(b []byte, now time.Time) (Statement, error) {
	var w statementWire
	sealed, err := unseal(b, &w)
	if err != nil {
		return Statement{}, fmt.Errorf("statement: %w", err)
	}
	st := Statement{Kind: w.Kind, Name: w.Name, Version: w.Version, Commit: w.Commit, SeenAt: time.UnixMilli(w.SeenAt)}
	id, err := v.signer(labelStatement, sealed, st.SeenAt, now, now)
	if err == nil && !id.Role.IsMember() {
		err = fmt.Errorf("%w: signed by a %s", content.ErrForbidden, id.Role)
	}
	if err != nil {
		return Statement{}, fmt.Errorf("statement on %.20q %.140q: %w", st.Kind, st.Name, err)
	}
	st.Signer = id
	return st, nil
}
