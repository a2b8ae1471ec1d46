package membership

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// kind is what a data folder is, by what lies in it.
type kind uint8

const (
	// kindNew: nobody has been a member with it.
	kindNew kind = iota
	// kindEntering: a first start was cut short, and what it made is gone on with.
	kindEntering
	kindWhole
	// kindPartly: a member's, as a backup may bring it back, that can't be one by it.
	kindPartly
)

// needed are files that a member must have, traces what else only a member leaves.
func needed() []string { return []string{identityFile, membershipFile} }

func traces() []string {
	return []string{meshKeyFile, invitesDir, revokedDir, rollFile, "peers", "records", "volumes", "cache", "origin/grange.json"}
}

// entered are the files that a first start makes before the last, the membership.
func entered() []string { return []string{enteringFile, identityFile, meshKeyFile, rollFile} }

// classify says what a folder with those of needed and traces is, and lacks. Pure.
func classify(has []string) (k kind, missing []string) {
	for _, name := range needed() {
		if !slices.Contains(has, name) {
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) == 0:
		return kindWhole, nil
	case slices.Contains(has, enteringFile) && !slices.ContainsFunc(has, func(name string) bool { return !slices.Contains(entered(), name) }):
		return kindEntering, nil
	case len(has) == 0:
		return kindNew, nil
	}
	return kindPartly, missing
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
	case kindNew, kindEntering:
		return s, key, fmt.Errorf("membership: %w", content.ErrNotFound)
	case kindPartly:
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
		return s, key, mixed(dir, identityFile, MemberID(key.Public()), MemberID(owner))
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
