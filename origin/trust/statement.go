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
	ID string `cbor:"id"`
	// Scope that the pack lies in.
	Scope content.Scope `cbor:"scope"`
	// Directory is the digest of the whole directory.
	Directory content.CID `cbor:"directory"`
}

type packWire struct {
	Magic string `cbor:"magic"`
	Pack
	Signed int64 `cbor:"signed"`
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
	b, err := s.seal(labelPack, packWire{packMagic, p, at.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("sign pack %s: %w", p.ID, err)
	}
	return b, nil
}

// OpenPack checks that b is the word of a member that may give it, for exactly p, and returns when it was
// given. Seen is when the store had the pack, as for Open: a revoked signer is believed in what was there
// before. Undecodable bytes are ErrCorrupt, anything that does not hold is ErrForbidden.
func (v *Verifier) OpenPack(b []byte, p Pack, seen, now time.Time) (time.Time, error) {
	var w packWire
	sealed, err := unseal(b, &w)
	at := time.UnixMilli(w.Signed)
	var id Identity
	switch {
	case err != nil:
	case w.Magic != packMagic || w.Pack != p:
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

// Statement is a member's signed word that it saw a version of a record at the
// origin, from which others tell how old their copy may be.
type Statement struct {
	Kind    content.Kind `cbor:"kind"`
	Name    string       `cbor:"name"`
	Version uint64       `cbor:"version"`
	Commit  Commit       `cbor:"commit"`
	// SeenAt is when the origin confirmed it, to the millisecond.
	SeenAt time.Time `cbor:"-"`
	// Signer is the member that says so, set by OpenStatement.
	Signer Identity `cbor:"-"`
}

type statementWire struct {
	Statement
	Seen int64 `cbor:"seen"`
}

// State signs st.
func (s Signer) State(st Statement) ([]byte, error) {
	b, err := s.seal(labelStatement, statementWire{st, st.SeenAt.UnixMilli()})
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
	st := w.Statement
	st.SeenAt = time.UnixMilli(w.Seen)
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
