package trust

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Generation orders the secrets that a mesh has had. Two admins that rotate at once
// make two of one number, of which the one of the higher ID stands.
type Generation struct {
	Number uint64 `cbor:"number"`
	// ID follows from the root of the generation, and gives nothing of it away.
	ID [8]byte `cbor:"id"`
}

// After reports whether g replaces other.
func (g Generation) After(other Generation) bool {
	return g.Number > other.Number || g.Number == other.Number && string(g.ID[:]) > string(other.ID[:])
}

// generationStep is how far one rotation may be ahead of what a member has: a year of
// one a minute away, and nobody can use the numbers up.
const generationStep = 1 << 20

// Follows reports whether a member with secrets of other may go over to g.
func (g Generation) Follows(other Generation) bool {
	return g.After(other) && (g.Number < other.Number || g.Number-other.Number <= generationStep)
}

// Secrets are what members share beside their certificates, in generations that owe
// nothing to those before. A field is zero for members that may not have it.
type Secrets struct {
	Generation Generation `cbor:"generation"`
	// Announce hides the roots of scope mesh and farm from those who carry the
	// DHT: members announce them under a keyed hash. Seeds don't have it.
	Announce [32]byte `cbor:"announce"`
	// Gossip encrypts the gossip of the member's farm.
	Gossip [32]byte `cbor:"gossip"`
	// Root is random, and the others derive from it. Admins give each member its own.
	Root [32]byte `cbor:"root"`
}

// NewSecrets makes the secrets of a new generation, for an admin to share out with For.
func NewSecrets(number uint64) Secrets {
	return secretsOf(number, [32]byte(NewPrivateKey().Seed()))
}

func secretsOf(number uint64, root [32]byte) Secrets {
	id := PrivateKey{root}.derive("generation")
	return Secrets{
		Generation: Generation{number, [8]byte(id[:8])}, Announce: PrivateKey{root}.derive("announce"), Root: root,
	}
}

// For returns the part of an admin's secrets that a member of that role and farm gets.
func (s Secrets) For(role Role, farm string) Secrets {
	out := Secrets{Generation: s.Generation}
	if role.IsMember() {
		out.Announce = s.Announce
		out.Gossip = PrivateKey{s.Root}.derive("gossip " + farm)
	}
	if role == RoleAdmin {
		out.Root = s.Root
	}
	return out
}

// check tells the secrets of a farm's members from others without giving them away.
func (s Secrets) check() [32]byte {
	return sha256.Sum256(append(append([]byte("grange secrets "), s.Announce[:]...), s.Gossip[:]...))
}

// Rotation is an admin's signed word that the mesh has secrets of a generation, and
// how to know those of one farm. It carries none: whoever hears it asks for its own.
type Rotation struct {
	Generation Generation `cbor:"generation"`
	Farm       string     `cbor:"farm"`
	Check      [32]byte   `cbor:"check"` // of the secrets: see Admit
}

type rotationWire struct {
	Rotation
	Signed int64 `cbor:"signed"`
}

// Rotate signs the rotation to s, an admin's secrets, for the members of a farm.
func (s Signer) Rotate(secrets Secrets, farm string, now time.Time) ([]byte, error) {
	b, err := s.seal(labelRotation, rotationWire{Rotation{secrets.Generation, farm, secrets.For(RoleNode, farm).check()}, now.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("sign rotation %d: %w", secrets.Generation.Number, err)
	}
	return b, nil
}

// OpenRotation checks a rotation, which an admin makes. Errors are as of Open.
func (v *Verifier) OpenRotation(b []byte, now time.Time) (Rotation, error) {
	var w rotationWire
	sealed, err := unseal(b, &w)
	if err != nil {
		return Rotation{}, fmt.Errorf("rotation: %w", err)
	}
	id, err := v.signer(labelRotation, sealed, time.UnixMilli(w.Signed), now, now)
	if err == nil && id.Role != RoleAdmin {
		err = fmt.Errorf("%w: signed by a %s", content.ErrForbidden, id.Role)
	}
	if err != nil {
		return Rotation{}, fmt.Errorf("rotation %d: %w", w.Generation.Number, err)
	}
	return w.Rotation, nil
}

// Admit checks that s are the rotation's, as far as the role and farm have any.
func (r Rotation) Admit(s Secrets, role Role, farm string) error {
	ok := s.Generation == r.Generation && farm == r.Farm && s.check() == r.Check
	if role == RoleAdmin {
		ok = ok && secretsOf(s.Generation.Number, s.Root).For(role, farm) == s
	}
	if !ok {
		return fmt.Errorf("secrets of generation %d: %w: they are not those that an admin signed for", r.Generation.Number, content.ErrCorrupt)
	}
	return nil
}
