package trust

import (
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

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
