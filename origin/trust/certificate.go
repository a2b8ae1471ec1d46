package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Role is what a member may do. Each role of publisher and admin includes the
// one before it; a seed is outside that ladder.
type Role string

// The roles.
const (
	// RoleSeed reads and serves public content.
	RoleSeed Role = "seed"
	// RoleNode signs volumes, snapshots and instances of its farm.
	RoleNode Role = "node"
	// RolePublisher also signs images, tags and trees.
	RolePublisher Role = "publisher"
	// RoleAdmin also signs certificates and revocations.
	RoleAdmin Role = "admin"
)

// ParseRole reads a role's name.
func ParseRole(s string) (Role, error) {
	if r := Role(s); r.rank() >= 0 {
		return r, nil
	}
	return "", fmt.Errorf("role %.40q: %w: want node, seed, publisher or admin", s, content.ErrInvalid)
}

// rank orders the roles; -1 is no role.
func (r Role) rank() int {
	return slices.Index([]Role{RoleSeed, RoleNode, RolePublisher, RoleAdmin}, r)
}

// IsMember reports whether the role may read content of scope mesh.
func (r Role) IsMember() bool { return r.rank() >= RoleNode.rank() }

// Identity is what a checked certificate says of a key.
type Identity struct {
	Key  PublicKey `json:"key" doc:"the member's public key"`
	Role Role      `json:"role,omitempty"`
	// Farm is the farm of a member, "" for a seed.
	Farm string `json:"farm,omitempty"`
}

// MayRead reports whether the identity may read that scope; a zero one public only.
func (id Identity) MayRead(s content.Scope) bool {
	switch s {
	case content.Public():
		return true
	case content.Mesh():
		return id.Role.IsMember()
	}
	return id.Role.IsMember() && s.Farm() != "" && s.Farm() == id.Farm
}

// MaySign reports whether the identity may sign a record of that kind for that
// farm, which is then its own; farm is "" for what belongs to the whole mesh.
func (id Identity) MaySign(kind content.Kind, farm string) bool {
	switch kind {
	case content.KindInstance:
		return id.Role.rank() >= RoleNode.rank() && farm != "" && farm == id.Farm || id.Role.rank() >= RolePublisher.rank() && farm == ""
	case content.KindVolume, content.KindSnapshot, content.KindLease:
		return id.Role.rank() >= RoleNode.rank() && farm != "" && farm == id.Farm
	case content.KindImage, content.KindTag, content.KindTree:
		return id.Role.rank() >= RolePublisher.rank() && (farm == "" || farm == id.Farm)
	case content.KindCollection:
		return id.Role.rank() >= RolePublisher.rank() && farm == ""
	case content.KindRevocation:
		return id.Role.rank() >= RoleAdmin.rank()
	}
	return false
}

// certificateLifetime is how long a certificate is good: farms outlive attention, an
// expired member stops serving, and a lost key is revoked, not waited out.
const certificateLifetime = 10 * 365 * 24 * time.Hour

// clockSkew is how far two members' clocks may differ, for all that is signed.
const clockSkew = 5 * time.Minute

// skewed is for a time of another's clock that this host's clock does not bear out.
func skewed(what string, theirs, ours time.Time) error {
	return fmt.Errorf("%w: %s %s, and by the clock here it is %s: clocks may differ by %s; have NTP set them (timedatectl set-ntp true), here or there",
		content.ErrForbidden, what, theirs.UTC().Format(time.RFC3339), ours.UTC().Format(time.RFC3339), clockSkew)
}

// chainMax is the longest chain: member, delegated admin, the admin's admin.
const chainMax = 3

// Certificate gives the key Subject a role. Build one with Issue.
type Certificate struct {
	Serial    [16]byte  `cbor:"serial"`
	Subject   PublicKey `cbor:"subject"`
	Role      Role      `cbor:"role"`
	Farm      string    `cbor:"farm"`
	NotBefore time.Time `cbor:"from"` // in whole seconds, as NotAfter
	NotAfter  time.Time `cbor:"until"`
	Issuer    PublicKey `cbor:"issuer"`

	payload, signature []byte
}

// claims of a certificate are what is signed, as the payload.
type claims Certificate

type certificateWire struct {
	Magic string `cbor:"magic"`
	claims
}

const certificateMagic = "grange-certificate/1"

// signedWire is a certificate's outer form: the exact payload, and its signature.
type signedWire struct {
	_         struct{} `cbor:",toarray"`
	Payload   []byte
	Signature []byte
}

// MarshalCBOR writes [payload, signature].
func (c Certificate) MarshalCBOR() ([]byte, error) {
	return content.NewCodec().Marshal(signedWire{Payload: c.payload, Signature: c.signature})
}

// UnmarshalCBOR reads a claim: the signature is kept for the Verifier.
func (c *Certificate) UnmarshalCBOR(b []byte) error {
	codec := content.NewCodec()
	var outer signedWire
	var w certificateWire
	if err := codec.Unmarshal(b, &outer); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if err := codec.Unmarshal(outer.Payload, &w); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if w.Magic != certificateMagic || w.Role.rank() < 0 {
		return fmt.Errorf("certificate: %w: magic %.30q, role %.30q", content.ErrCorrupt, w.Magic, w.Role)
	}
	*c = Certificate(w.claims)
	c.payload, c.signature = outer.Payload, outer.Signature
	return nil
}

// Sum names the certificate, to its signature.
func (c Certificate) Sum() [32]byte { return sha256.Sum256(slices.Concat(c.payload, c.signature)) }

// Chain is a member's certificate, its issuer's, and so on to one by the mesh key.
type Chain []Certificate

// Signer is a member's key with the chain that it signs by; the mesh key has none.
type Signer struct {
	Key   PrivateKey
	Chain Chain
	// Renewed returns the chain that the member has now; nil where it is Chain always.
	Renewed func() Chain
}

// Certificates is the chain that the signer shows now.
func (s Signer) Certificates() Chain {
	if s.Renewed != nil {
		return s.Renewed()
	}
	return s.Chain
}

// Identity is what the signer's certificate says.
func (s Signer) Identity() Identity { return s.Certificates().Identity() }

// Issue signs a certificate that says id, and returns its whole chain. The signer is the
// mesh key or an admin; whether a verifier believes it is the verifier's to check.
func (s Signer) Issue(id Identity, now time.Time) (Chain, error) {
	if id.Role.rank() < 0 {
		return nil, fmt.Errorf("issue certificate: role %.40q: %w", id.Role, content.ErrInvalid)
	}
	if id.Role != RoleSeed {
		if err := content.CheckFarm(id.Farm); err != nil {
			return nil, fmt.Errorf("issue certificate: farm: %w", err)
		}
	}
	if len(s.Certificates()) >= chainMax {
		return nil, fmt.Errorf("issue certificate: %w: this admin was delegated %d times; ask one nearer to the mesh key", content.ErrForbidden, len(s.Certificates()))
	}
	c := Certificate{
		Subject: id.Key, Role: id.Role, Farm: id.Farm, Issuer: s.Key.Public(),
		NotBefore: now.Truncate(time.Second), NotAfter: now.Add(certificateLifetime).Truncate(time.Second),
	}
	rand.Read(c.Serial[:])
	c = c.signed(s.Key)
	return append(Chain{c}, s.Certificates()...), nil
}

func (c Certificate) signed(key PrivateKey) Certificate {
	payload, err := content.NewCodec().Marshal(certificateWire{certificateMagic, claims(c)})
	if err != nil { // every field can always be encoded
		panic(fmt.Sprintf("trust: encode certificate: %v", err))
	}
	c.payload, c.signature = payload, key.sign(labelCertificate, payload)
	return c
}

// Identity returns what the chain claims, unchecked: for the member whose own it is.
func (c Chain) Identity() Identity {
	if len(c) == 0 {
		return Identity{}
	}
	return Identity{c[0].Subject, c[0].Role, c[0].Farm}
}

// Verifier checks certificates and envelopes against one mesh. Concurrently safe.
type Verifier struct {
	mesh    PublicKey
	revoked atomic.Pointer[map[PublicKey]time.Time]
	met     func(Certificate) (time.Time, bool)
	last    func(PublicKey) Chain
}

// NewVerifier trusts what the mesh key signed.
func NewVerifier(mesh PublicKey) *Verifier {
	v := &Verifier{
		mesh: mesh, met: func(Certificate) (time.Time, bool) { return time.Time{}, false },
		last: func(PublicKey) Chain { return nil },
	}
	v.Revoke(nil)
	return v
}

// Mesh returns the mesh key.
func (v *Verifier) Mesh() PublicKey { return v.mesh }

// Revoke replaces the set of revoked keys, each with the time at which this member learnt of it: nothing that
// one of them signed is believed unless it was seen before, nor what was signed under a certificate that it
// issued. When the signer says that it signed does not count: who was revoked may say anything.
func (v *Verifier) Revoke(keys map[PublicKey]time.Time) { v.revoked.Store(&keys) }

// Remember has the verifier ask since when this member has known a certificate: one that it knew before it
// learnt that the issuer was revoked is good still, so that an admin gone bad does not take honest members
// with it; and which chain of a member it last believed, nil if none. Call it before any other.
func (v *Verifier) Remember(met func(Certificate) (time.Time, bool), last func(PublicKey) Chain) {
	v.met, v.last = met, last
}

// Revoked returns when this member learnt that the key was revoked; false if never.
func (v *Verifier) Revoked(key PublicKey) (time.Time, bool) {
	since, ok := (*v.revoked.Load())[key]
	return since, ok
}

// Orphaned reports whether a chain goes through an issuer that was revoked: who has
// one needs another from a living admin, to be believed by those who never met it.
func (v *Verifier) Orphaned(chain Chain) bool {
	return slices.ContainsFunc(chain[min(1, len(chain)):], func(c Certificate) bool { _, ok := v.Revoked(c.Subject); return ok })
}

// Certified is Verify without regard to revocations: who the member is, or was.
func (v *Verifier) Certified(chain Chain, now time.Time) (Identity, error) {
	return v.verify(chain, now, time.Time{})
}

// Verify checks that the chain leads from a member to the mesh key, is good now and
// not revoked. The error wraps ErrForbidden and says which link failed.
func (v *Verifier) Verify(chain Chain, now time.Time) (Identity, error) {
	return v.verify(chain, now, now)
}

// Recognize is Verify for who has proved to hold the key that the chain is for. A member
// that was away may have let an admin that is none any more renew its certificate: it
// is known by the one before, and so can be told.
func (v *Verifier) Recognize(chain Chain, now time.Time) (Identity, error) {
	id, err := v.Verify(chain, now)
	if err == nil || len(chain) == 0 {
		return id, err
	}
	if before, failed := v.Verify(v.last(chain[0].Subject), now); failed == nil {
		return before, nil
	}
	return id, err
}

// verify checks the chain of something signed at a time and seen at another.
func (v *Verifier) verify(chain Chain, at, seen time.Time) (Identity, error) {
	if len(chain) == 0 || len(chain) > chainMax {
		return Identity{}, fmt.Errorf("certificate chain of %d: %w: want 1 to %d", len(chain), content.ErrForbidden, chainMax)
	}
	for i, c := range chain {
		issuer := v.mesh
		if i+1 < len(chain) {
			issuer = chain[i+1].Subject
			if chain[i+1].Role != RoleAdmin {
				return Identity{}, fmt.Errorf("certificate of %s: %w: its issuer %s is %s, not admin", c.Subject, content.ErrForbidden, issuer, chain[i+1].Role)
			}
		}
		if i == 1 && v.Orphaned(chain) {
			if since, ok := v.met(chain[0]); ok && since.Before(seen) {
				seen = since // this member has seen that long what the issuers signed
			}
		}
		if err := v.link(c, issuer, at, seen); err != nil {
			return Identity{}, fmt.Errorf("certificate of %s: %w", c.Subject, err)
		}
	}
	return chain.Identity(), nil
}

func (v *Verifier) link(c Certificate, issuer PublicKey, at, seen time.Time) error {
	since, revoked := v.Revoked(c.Subject)
	switch {
	case c.Issuer != issuer || !issuer.verify(labelCertificate, c.payload, c.signature):
		return fmt.Errorf("%w: not signed by %s; it may belong to another mesh", content.ErrForbidden, issuer)
	case at.Before(c.NotBefore.Add(-clockSkew)):
		return skewed("good from", c.NotBefore, at)
	case at.After(c.NotAfter.Add(clockSkew)):
		return fmt.Errorf("%w; if the clock is right, join again with a new token", skewed("expired on", c.NotAfter, at))
	case revoked && !seen.Before(since):
		return fmt.Errorf("%w: revoked on %s", content.ErrForbidden, since.UTC().Format(time.RFC3339))
	}
	return nil
}
