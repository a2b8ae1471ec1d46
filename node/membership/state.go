package membership

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
)

// The files of a member in its data folder. Losing identity or membership means joining
// again; losing the mesh key, that no admin can be made once none is left.
const (
	identityFile   = "identity.key"
	meshKeyFile    = "mesh.key"
	membershipFile = "membership"
	invitesDir     = "invites"
	revokedDir     = "revoked"
	rollFile       = "roll"
	// enteringFile is there until the first start is through, and what is here its own.
	enteringFile = "entering"
)

// State is what a member keeps of its own place in the mesh.
type State struct {
	Magic   string          `cbor:"magic"`
	Mesh    trust.PublicKey `cbor:"mesh"`
	Chain   trust.Chain     `cbor:"chain"`
	Secrets trust.Secrets   `cbor:"secrets"`
	// Former are the secrets before, good for formerFor since Rotated, in Unix ms.
	Former  trust.Secrets `cbor:"former"`
	Rotated int64         `cbor:"rotated"`
	// Rotation is an admin's word that Secrets are those of this farm.
	Rotation []byte `cbor:"rotation"`
	// Origin is the URL of the mesh's origin: a token's word, or a founder's, until this
	// member has Seen it to be the mesh's; then the one that was seen last.
	Origin    string   `cbor:"origin"`
	Seen      bool     `cbor:"seen"`
	Bootstrap []string `cbor:"bootstrap"`
	// Place are the addresses that the member was last served at.
	Place []string `cbor:"place"`
	// Founder says that this member made the mesh.
	Founder bool `cbor:"founder"`

	// Fresh says that the member has just founded or joined.
	Fresh bool `cbor:"-"`
}

const stateMagic = "grange-membership/3"

func (s State) save(dir string) error {
	s.Magic = stateMagic
	b, err := content.NewCodec().Marshal(s)
	if err != nil {
		return fmt.Errorf("membership: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, membershipFile), b, 0o600)
}

func load(dir string) (State, error) {
	path := filepath.Join(dir, membershipFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return State{}, fmt.Errorf("membership: %w", err)
	}
	var s State
	if err := content.NewCodec().Unmarshal(b, &s); err != nil || s.Magic != stateMagic {
		return State{}, fmt.Errorf("membership %s: %w; restore it from a backup, or join again with an empty --data", path, errors.Join(content.ErrCorrupt, err))
	}
	return s, nil
}

// In reports whether a folder is that of a member already, which needs no token.
func In(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, membershipFile))
	return err == nil
}

// former returns the secrets before the last rotation, as long as they are good.
func (s State) former(now time.Time, good time.Duration) (trust.Secrets, bool) {
	age := now.Sub(time.UnixMilli(s.Rotated))
	return s.Former, s.Former != (trust.Secrets{}) && age >= 0 && age < good
}
