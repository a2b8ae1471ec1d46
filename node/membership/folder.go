package membership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// stage is what a data folder is, by what lies in it.
type stage uint8

const (
	// stageNew: nobody has been a member with it, though a first start may have been cut
	// short: what that made is gone on with.
	stageNew stage = iota
	stageWhole
	// stagePartly: a member's, as a backup may bring it back, that can't be one by it.
	stagePartly
)

// needed are files that a member must have, traces what else only a member leaves.
func needed() []string { return []string{identityFile, membershipFile} }

func traces() []string {
	return []string{meshKeyFile, invitesDir, revokedDir, rollFile, "peers", "records", "volumes", "cache", "origin/" + content.KeyMesh}
}

// entered are the files that a first start makes before the last, the membership.
func entered() []string { return []string{enteringFile, identityFile, meshKeyFile, rollFile} }

// classify says what a folder with those of needed and traces is, and lacks. Pure.
func classify(has []string) (k stage, missing []string) {
	for _, name := range needed() {
		if !slices.Contains(has, name) {
			missing = append(missing, name)
		}
	}
	begun := slices.Contains(has, enteringFile) && !slices.ContainsFunc(has, func(name string) bool { return !slices.Contains(entered(), name) })
	switch {
	case len(missing) == 0:
		return stageWhole, nil
	case len(has) == 0 || begun:
		return stageNew, nil
	}
	return stagePartly, missing
}

// remains returns what of a member is in a folder. A folder in it that holds nothing,
// as one where a disk is to be mounted, is no trace.
func remains(dir string) (has []string, err error) {
	for _, name := range slices.Concat(needed(), traces(), []string{enteringFile}) {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err == nil && info.IsDir() {
			var files []os.DirEntry
			files, err = os.ReadDir(path)
			if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return !strings.HasPrefix(f.Name(), ".") && f.Name() != "lost+found" }) {
				continue
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("data folder: %w", err)
		}
		has = append(has, name)
	}
	return has, nil
}

// Look returns the place in the mesh and the key of the member that a data folder is
// of; ErrNotFound for one that nobody has been a member with. One of which a part is
// missing, damaged or another member's is ErrCorrupt: nobody enters a mesh with it,
// for that would write over what is left. It changes nothing.
func Look(dir string) (s State, key trust.PrivateKey, err error) {
	has, err := remains(dir)
	if err != nil {
		return s, key, err
	}
	switch k, missing := classify(has); k {
	case stageNew:
		return s, key, fmt.Errorf("membership: %w", content.ErrNotFound)
	case stagePartly:
		return s, key, fmt.Errorf("data folder %s: %w: it is a member's, with %s, and lacks %s; restore that from the same backup, or give an empty --data; it was left as it is",
			dir, content.ErrCorrupt, strings.Join(has, ", "), strings.Join(missing, " and "))
	}
	if s, err = load(dir); err == nil {
		key, err = trust.LoadKey(filepath.Join(dir, identityFile))
	}
	if err != nil {
		return s, key, err
	}
	if owner := s.Chain.Identity().Key; owner != key.Public() {
		return s, key, mixed(dir, identityFile, identity.PeerID(key.Public()).String(), identity.PeerID(owner).String())
	}
	mesh, err := trust.LoadKey(filepath.Join(dir, meshKeyFile))
	switch {
	case errors.Is(err, content.ErrNotFound): // it may be kept elsewhere
		return s, key, nil
	case err == nil && mesh.Public() != s.Mesh:
		err = mixed(dir, meshKeyFile, mesh.Public().String(), s.Mesh.String())
	}
	return s, key, err
}

// mixed is for a folder whose files are of two members.
func mixed(dir, file, of, want string) error {
	return fmt.Errorf("data folder %s: %w: its %s is of %s, and its %s of %s; restore both from one backup; it was left as it is",
		dir, content.ErrCorrupt, file, of, membershipFile, want)
}

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
