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
