// Package trust says who may do what. A mesh is a key pair; its private half
// signs certificates, each of which gives one member's key a role and a farm.
// Members sign records into an [Envelope]; a newcomer shows the invite of a
// join [Token] once and gets a certificate for it.
//
// What is signed is always the exact encoded bytes, behind a label that says
// what they are, so that a signature over one thing can never be shown as a
// signature over another.
package trust

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// PublicKey is an Ed25519 public key. Its text form is lower-case base32.
type PublicKey [ed25519.PublicKeySize]byte

// keyEncoding is the text form of keys, safe in file names, URLs and domain labels.
func keyEncoding() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

// ParsePublicKey reads the text form.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := keyEncoding().DecodeString(strings.ToLower(s))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("public key %.80q: %w: want 52 characters of base32", s, content.ErrInvalid)
	}
	return PublicKey(b), nil
}

// String returns the text form.
func (k PublicKey) String() string { return keyEncoding().EncodeToString(k[:]) }

// IsZero reports whether no key is there.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// MarshalText returns the text form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads the text form.
func (k *PublicKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParsePublicKey(string(b))
	return err
}

// label separates what is signed by its meaning.
type label string

const (
	labelCertificate label = "grange certificate 1\n"
	labelEnvelope    label = "grange envelope 1\n"
	labelStatement   label = "grange statement 1\n"
	labelPack        label = "grange pack 1\n"
	labelRotation    label = "grange rotation 1\n"
)

func (k PublicKey) verify(l label, payload, signature []byte) bool {
	return len(signature) == ed25519.SignatureSize && ed25519.Verify(k[:], append([]byte(l), payload...), signature)
}

// PrivateKey is an Ed25519 private key. It prints as its public half.
type PrivateKey struct{ seed [ed25519.SeedSize]byte }

// NewPrivateKey makes a key.
func NewPrivateKey() PrivateKey {
	var k PrivateKey
	rand.Read(k.seed[:]) // never fails: the runtime aborts when the system has no randomness
	return k
}

// PrivateKeyFromSeed rebuilds a key from its seed.
func PrivateKeyFromSeed(seed []byte) (PrivateKey, error) {
	if len(seed) != ed25519.SeedSize {
		return PrivateKey{}, fmt.Errorf("private key of %d bytes: %w: want %d", len(seed), content.ErrInvalid, ed25519.SeedSize)
	}
	return PrivateKey{[ed25519.SeedSize]byte(seed)}, nil
}

// Seed returns the 32 secret bytes that are the key.
func (k PrivateKey) Seed() []byte { return k.seed[:] }

// Public returns the public half.
func (k PrivateKey) Public() PublicKey {
	return PublicKey(ed25519.NewKeyFromSeed(k.seed[:]).Public().(ed25519.PublicKey))
}

// String returns the public half, so that a key in a log gives nothing away.
func (k PrivateKey) String() string { return "private key of " + k.Public().String() }

// GoString is String.
func (k PrivateKey) GoString() string { return k.String() }

func (k PrivateKey) sign(l label, payload []byte) []byte {
	return ed25519.Sign(ed25519.NewKeyFromSeed(k.seed[:]), append([]byte(l), payload...))
}

// derive returns 32 bytes that only the key's holder knows, others for each purpose.
func (k PrivateKey) derive(purpose string) [32]byte {
	b, err := hkdf.Key(sha256.New, k.seed[:], nil, "grange "+purpose, 32)
	if err != nil { // the length is a constant within what HKDF gives
		panic(fmt.Sprintf("trust: derive %s: %v", purpose, err))
	}
	return [32]byte(b)
}

const keyFileMagic = "grange-private-key-1 "

// SaveKey writes k to path, readable by its owner only.
func SaveKey(path string, k PrivateKey) error {
	return durable.WriteFile(path, []byte(k.FileText()), 0o600)
}

// FileText is what a key file has: the secret.
func (k PrivateKey) FileText() string {
	return keyFileMagic + keyEncoding().EncodeToString(k.seed[:]) + "\n"
}

// ParseKeyFile reads the text of a key file; any other is ErrInvalid.
func ParseKeyFile(s string) (PrivateKey, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), keyFileMagic)
	seed, err := keyEncoding().DecodeString(text)
	if !ok || err != nil || len(seed) != ed25519.SeedSize {
		return PrivateKey{}, fmt.Errorf("%w: not a private key of grange", content.ErrInvalid)
	}
	return PrivateKeyFromSeed(seed)
}

// LoadKey reads what SaveKey wrote; an absent file is ErrNotFound.
func LoadKey(path string) (PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return PrivateKey{}, fmt.Errorf("key %s: %w", path, content.ErrNotFound)
	}
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key: %w", err)
	}
	k, err := ParseKeyFile(string(b))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("key %s: %w: not a private key of grange; restore the file from a backup", path, content.ErrCorrupt)
	}
	return k, nil
}

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
