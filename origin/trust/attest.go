package trust

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
