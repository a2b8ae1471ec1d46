package trust

import (
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Commit identifies an attempt to write a record, so that its writer knows its own.
type Commit [16]byte

// Envelope is a signed record: a name and what it stands for.
//
// Encoded as [payload, signature, chain]: payload is the canonical map of the
// fields below with magic "grange-record/1", the signature is over the payload,
// the chain certifies the signing key. At most content.RecordSizeMax bytes.
type Envelope struct {
	Kind content.Kind `cbor:"kind"`
	Name string       `cbor:"name"`
	// Version rises by one with each write of the name, deletions included.
	Version  uint64    `cbor:"version"`
	SignedAt time.Time `cbor:"-"`
	Commit   Commit    `cbor:"commit"`
	// Farm owns the record; "" for kinds that belong to the mesh.
	Farm string `cbor:"farm"`
	// Tombstone says that the name was deleted; Body is empty then.
	Tombstone bool   `cbor:"gone"`
	Body      []byte `cbor:"body"`
	// Signer is the identity that signed, set by Open.
	Signer Identity `cbor:"-"`

	root PublicKey // as Revocation has it, set by Open
}

type envelopeWire struct {
	Magic string `cbor:"magic"`
	Envelope
	Signed int64 `cbor:"signed"` // in milliseconds, as in all that is sealed
}

const envelopeMagic = "grange-record/1"

// Seal signs e. SignedAt is kept to the millisecond.
func (s Signer) Seal(e Envelope) ([]byte, error) {
	id := s.Identity()
	if !id.MaySign(e.Kind, e.Farm) {
		return nil, fmt.Errorf("sign %s %q: %w: this member's certificate has role %q of farm %q; ask an admin for a token of a role and farm that may", e.Kind, e.Name, content.ErrForbidden, id.Role, id.Farm)
	}
	b, err := s.seal(labelEnvelope, envelopeWire{envelopeMagic, e, e.SignedAt.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("sign %s %q: %w", e.Kind, e.Name, err)
	}
	return b, nil
}

// Open checks a sealed envelope: its signature, the signer's chain at the time of signing, and the signer's
// right to that kind and farm. A signer that was revoked since is believed in what an honest member, or the
// store, had seen before: seen is that time, or now where nobody vouches for an earlier one. Undecodable
// bytes are ErrCorrupt, a name that the kind can't have ErrInvalid, anything that is not allowed
// ErrForbidden. The kind and name are the signer's claim: the caller compares them with what it asked for.
func (v *Verifier) Open(b []byte, seen, now time.Time) (Envelope, error) {
	return v.open(b, seen, now, func(Chain) bool { return false })
}

// Reopen is Open of what Open has checked before and nobody else may have changed since.
// Its signatures stand: they are looked at again where a key of its chain was revoked.
func (v *Verifier) Reopen(b []byte, seen, now time.Time) (Envelope, error) {
	return v.open(b, seen, now, func(c Chain) bool {
		return len(c) > 0 && !slices.ContainsFunc(c, func(c Certificate) bool { _, revoked := v.Revoked(c.Subject); return revoked })
	})
}

// Peek decodes a sealed envelope and checks nothing: what it says is anybody's claim. It is for who only keeps what a
// record names, whoever wrote it. Undecodable bytes are ErrCorrupt.
func Peek(b []byte) (Envelope, error) {
	var w envelopeWire
	sealed, err := unseal(b, &w)
	if err == nil && w.Magic != envelopeMagic {
		err = fmt.Errorf("%w: magic %.30q", content.ErrUnknown, w.Magic)
	}
	if err != nil {
		return Envelope{}, fmt.Errorf("record: %w", err)
	}
	e := w.Envelope
	e.SignedAt, e.Signer = time.UnixMilli(w.Signed), sealed.Chain.Identity()
	return e, nil
}

// open opens a record, whose signatures stand if its chain does.
func (v *Verifier) open(b []byte, seen, now time.Time, stands func(Chain) bool) (Envelope, error) {
	var w envelopeWire
	sealed, err := unseal(b, &w)
	if err != nil {
		return Envelope{}, fmt.Errorf("record: %w", err)
	}
	if w.Magic != envelopeMagic {
		return Envelope{}, fmt.Errorf("record: %w: magic %.30q", content.ErrCorrupt, w.Magic)
	}
	if err := w.Kind.CheckName(w.Name); err != nil {
		return Envelope{}, fmt.Errorf("record: %w", err)
	}
	e := w.Envelope
	e.SignedAt = time.UnixMilli(w.Signed)
	id := sealed.Chain.Identity()
	if !stands(sealed.Chain) {
		id, err = v.signer(labelEnvelope, sealed, e.SignedAt, seen, now)
	}
	if err != nil {
		return Envelope{}, fmt.Errorf("record of %s %q: %w", e.Kind, e.Name, err)
	}
	if !id.MaySign(e.Kind, e.Farm) {
		return Envelope{}, fmt.Errorf("record of %s %q: %w: signed by a %s of farm %q", e.Kind, e.Name, content.ErrForbidden, id.Role, id.Farm)
	}
	e.Signer, e.root = id, sealed.Chain[len(sealed.Chain)-1].Subject
	return e, nil
}

// Revocation is an admin's signed word that a key is no member's any more.
type Revocation struct {
	Key PublicKey
	// Root is the admin that the mesh key made, by whose right it is one: itself, or
	// who made it one. It is the mesh key where that signed.
	Root PublicKey
	// SignedAt is when, by the admin's clock: nobody learnt of it before.
	SignedAt time.Time
}

// RevokeKey signs a key's revocation: a record of that kind, whose name is the key.
func (s Signer) RevokeKey(key PublicKey, now time.Time) ([]byte, error) {
	return s.Seal(Envelope{Kind: content.KindRevocation, Name: key.String(), Version: 1, SignedAt: now, Commit: NewCommit()})
}

// OpenRevocation is Open of what RevokeKey made. The mesh key's is ErrForbidden.
func (v *Verifier) OpenRevocation(b []byte, seen, now time.Time) (Revocation, error) {
	e, err := v.Open(b, seen, now)
	if err != nil {
		return Revocation{}, err
	}
	key, err := ParsePublicKey(e.Name)
	switch {
	case e.Kind != content.KindRevocation || e.Tombstone:
		err = fmt.Errorf("%w: it is a record of %s %q", content.ErrInvalid, e.Kind, e.Name)
	case key == v.mesh:
		err = fmt.Errorf("%w: the mesh key can't be revoked; found another mesh", content.ErrForbidden)
	}
	if err != nil {
		return Revocation{}, fmt.Errorf("revocation: %w", err)
	}
	return Revocation{key, e.root, e.SignedAt}, nil
}

// NewCommit names a new attempt to write a record.
func NewCommit() (c Commit) {
	rand.Read(c[:])
	return c
}

// sealedWire is the outer form of what members sign: the exact payload bytes, the
// signature over them, and the chain that certifies the signing key.
type sealedWire struct {
	_         struct{} `cbor:",toarray"`
	Payload   []byte
	Signature []byte
	Chain     Chain
}

// seal encodes and signs a payload, of content.RecordSizeMax bytes at most with all.
func (s Signer) seal(l label, payload any) ([]byte, error) {
	codec := content.NewCodec()
	p, err := codec.Marshal(payload)
	if err != nil {
		return nil, err
	}
	b, err := codec.Marshal(sealedWire{Payload: p, Signature: s.Key.sign(l, p), Chain: s.Certificates()})
	if err != nil {
		return nil, err
	}
	if len(b) > content.RecordSizeMax {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", content.ErrInvalid, len(b), content.RecordSizeMax)
	}
	return b, nil
}

// unseal decodes what seal made: a claim, for signer to check. Else it is ErrCorrupt.
func unseal(b []byte, payload any) (sealedWire, error) {
	if len(b) > content.RecordSizeMax {
		return sealedWire{}, fmt.Errorf("%w: %d bytes, the limit is %d", content.ErrCorrupt, len(b), content.RecordSizeMax)
	}
	codec := content.NewCodec()
	var w sealedWire
	if err := codec.Unmarshal(b, &w); err != nil {
		return sealedWire{}, err
	}
	return w, codec.Unmarshal(w.Payload, payload)
}

// signer returns who signed w, by a chain that was good at the time that w says and not
// revoked when w was seen. What does not hold is ErrForbidden, a time to come as well.
func (v *Verifier) signer(l label, w sealedWire, at, seen, now time.Time) (Identity, error) {
	if at.After(now.Add(clockSkew)) {
		return Identity{}, skewed("signed at", at, now)
	}
	id, err := v.verify(w.Chain, at, seen)
	if err != nil {
		return Identity{}, err
	}
	if !id.Key.verify(l, w.Payload, w.Signature) {
		return Identity{}, fmt.Errorf("%w: the signature does not match", content.ErrForbidden)
	}
	return id, nil
}

// Purpose says what an attestation is about: a word that a member gives beside records
// and statements, in a form known to its reader. Each has signatures of its own.
type Purpose string

// PurposeGossip is where a member is found in its farm: see p2p/farm.
const PurposeGossip Purpose = "grange gossip 1"

// labelAttestation begins every purpose's label, which is so none of the others.
const labelAttestation label = "grange attestation 1\n"

func (p Purpose) label() label { return labelAttestation + label(p) + "\n" }

// Attest signs payload in 64 bytes. Whether the signer may is for the reader to judge.
func (s Signer) Attest(p Purpose, payload []byte) []byte { return s.Key.sign(p.label(), payload) }

// Attested reports whether the key's owner has signed payload for that purpose.
func (k PublicKey) Attested(p Purpose, payload, signature []byte) bool {
	return k.verify(p.label(), payload, signature)
}
