package trust

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

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

// Revoke replaces the set of revoked keys, each with the time at which this member
// learnt of it: nothing that one of them signed is believed unless it was seen
// before, nor what was signed under a certificate that it issued. When the signer
// says that it signed does not count: who was revoked may say anything.
func (v *Verifier) Revoke(keys map[PublicKey]time.Time) { v.revoked.Store(&keys) }

// Remember has the verifier ask since when this member has known a certificate: one
// that it knew before it learnt that the issuer was revoked is good still, so that an
// admin gone bad does not take honest members with it; and which chain of a member it
// last believed, nil if none. Call it before any other.
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
	for _, c := range chain[min(1, len(chain)):] {
		if _, ok := v.Revoked(c.Subject); ok {
			return true
		}
	}
	return false
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
