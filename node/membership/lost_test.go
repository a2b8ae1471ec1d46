package membership

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// contents is each file of a folder with its bytes.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestPartlyRestoredFolders: a folder with anything of a member in it founds nothing
// and joins nothing, whatever is missing, damaged or another's; the error names that,
// and each byte stays.
func TestPartlyRestoredFolders(t *testing.T) {
	w := newWorld(t)
	other := w.found("other", "alpha")
	without := func(names ...string) func(string) error {
		return func(dir string) (err error) {
			for _, name := range names {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, name)))
			}
			return err
		}
	}
	only := func(name string) func(string) error {
		return func(dir string) (err error) {
			files, err := os.ReadDir(dir)
			for _, f := range files {
				if f.Name() != name {
					err = errors.Join(err, os.RemoveAll(filepath.Join(dir, f.Name())))
				}
			}
			return err
		}
	}
	of := func(name string) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(other.dir, name))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		}
	}
	cut := func(name string, size int64) func(string) error {
		return func(dir string) error { return os.Truncate(filepath.Join(dir, name), size) }
	}
	for what, c := range map[string]struct {
		harm func(dir string) error
		says []string
	}{
		"no membership":        {without(membershipFile), []string{"lacks membership", meshKeyFile, "backup"}},
		"no identity":          {without(identityFile), []string{"lacks identity.key", "backup"}},
		"neither":              {without(identityFile, membershipFile), []string{"lacks identity.key and membership"}},
		"the mesh key alone":   {only(meshKeyFile), []string{"with mesh.key, and lacks"}},
		"the identity alone":   {only(identityFile), []string{"with identity.key, and lacks membership"}},
		"the roll alone":       {only(rollFile), []string{"with roll, and lacks"}},
		"another's identity":   {of(identityFile), []string{identityFile, identity.PeerID(other.key.Public()).String(), "one backup"}},
		"another's mesh key":   {of(meshKeyFile), []string{meshKeyFile, other.State().Mesh.String(), "one backup"}},
		"another's membership": {of(membershipFile), []string{identityFile, identity.PeerID(other.key.Public()).String()}},
		"an empty identity":    {cut(identityFile, 0), []string{identityFile, "corrupt", "backup"}},
		"half an identity":     {cut(identityFile, 40), []string{identityFile, "corrupt", "backup"}},
		"an empty mesh key":    {cut(meshKeyFile, 0), []string{meshKeyFile, "corrupt", "backup"}},
		"an empty membership":  {cut(membershipFile, 0), []string{membershipFile, "corrupt", "backup"}},
		"half of a membership": {cut(membershipFile, 300), []string{membershipFile, "corrupt", "backup"}},
		"a marker left by half": {func(dir string) error {
			return errors.Join(without(membershipFile)(dir), os.WriteFile(filepath.Join(dir, enteringFile), nil, 0o600))
		}, []string{"lacks membership"}},
	} {
		n := w.found("restored", "alpha")
		if err := errors.Join(n.roll.save(), c.harm(n.dir)); err != nil {
			t.Fatal(err)
		}
		if what == "a marker left by half" { // it was a member for long
			if _, _, err := n.CreateToken(trust.RoleNode, "", 0); err != nil {
				t.Fatal(err)
			}
		}
		before := contents(t, n.dir)
		for _, join := range []string{"", "grange1token"} {
			e := w.entry(trust.PrivateKey{}, n.dir, "alpha")
			e.Join = join
			_, _, err := e.Enter(t.Context())
			if !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("%s: %v", what, err)
				continue
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: %q does not say %q", what, err, word)
				}
			}
		}
		if after := contents(t, n.dir); !maps.Equal(before, after) {
			t.Errorf("%s: the folder had %d files and has %d, or others", what, len(before), len(after))
		}
	}
}

// TestLacks: only a folder with nothing of a member is new, or one that a first
// start has marked; only one with all that is needed is whole.
func TestLacks(t *testing.T) {
	all := slices.Concat(needed(), traces(), []string{enteringFile})
	rapid.Check(t, func(t *rapid.T) {
		has := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, len(all), rapid.ID).Draw(t, "has")
		member, key, marked := slices.Contains(has, membershipFile), slices.Contains(has, identityFile), slices.Contains(has, enteringFile)
		missing, fresh := lacks(has)
		switch {
		case len(has) == 0 && !fresh, (len(missing) == 0) != (member && key), fresh && len(missing) == 0:
			t.Fatalf("%q: fresh is %t, without %q", has, fresh, missing)
		case fresh && len(has) > 0 && (!marked || member || slices.Contains(has, "volumes") || slices.Contains(has, invitesDir)):
			t.Fatalf("%q is taken for a first start", has)
		}
	})
}

// TestFoldersToMountOn, and others that hold nothing, are no member's.
func TestFoldersToMountOn(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"origin/probe", "volumes/lost+found", "cache"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Look(dir); !errors.Is(err, content.ErrNotFound) {
		t.Error(err)
	}
}

// TestFoundingIsKilled after the mesh key was written: the next start goes on with what
// is there, and does not join another mesh over it.
func TestFoundingIsKilled(t *testing.T) {
	w := newWorld(t)
	mesh, own, dir := trust.NewPrivateKey(), trust.NewPrivateKey(), t.TempDir()
	err := errors.Join(os.WriteFile(filepath.Join(dir, enteringFile), nil, 0o600),
		trust.SaveKey(filepath.Join(dir, meshKeyFile), mesh), trust.SaveKey(filepath.Join(dir, identityFile), own))
	if err != nil {
		t.Fatal(err)
	}
	e := w.entry(trust.PrivateKey{}, dir, "alpha")
	e.Join = trust.Token{Mesh: trust.NewPrivateKey().Public(), Role: trust.RoleNode, Farm: "alpha", Expires: 1 << 40}.String()
	if _, _, err := e.Enter(t.Context()); !errors.Is(err, content.ErrConflict) {
		t.Errorf("joined over it: %v", err)
	}
	s, key, err := w.entry(trust.PrivateKey{}, dir, "alpha").Enter(t.Context())
	if err != nil || s.Mesh != mesh.Public() || key != own {
		t.Errorf("mesh %s, %v", s.Mesh, err)
	}
	marker := filepath.Join(dir, enteringFile)
	if err := os.WriteFile(marker, nil, 0o600); err != nil { // as an end just before the last step leaves it
		t.Fatal(err)
	}
	if _, _, err := w.entry(trust.PrivateKey{}, dir, "alpha").Enter(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(marker); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder of a member is marked as new still: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, enteringFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the marker: %v", err)
	}
}
