package membership

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestTheMembershipFileIsLost: a folder with anything else of a member in it founds
// nothing, and the mesh key that lies there is not written over.
func TestTheMembershipFileIsLost(t *testing.T) {
	w := newWorld(t)
	first := w.found("first", "alpha")
	key, err := first.MeshKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.roll.save(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(first.dir, membershipFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.entry(first.key, first.dir, "alpha").Enter(t.Context()); err == nil || errors.Is(err, content.ErrNotFound) {
		t.Errorf("it is somebody anew: %v", err)
	}
	if there, err := trust.LoadKey(filepath.Join(first.dir, meshKeyFile)); err != nil || there != key {
		t.Errorf("the mesh key is %s (%v), and was %s", there.Public(), err, key.Public())
	}
}

// TestFoundingIsKilled after the mesh key was written: the next start goes on with it.
func TestFoundingIsKilled(t *testing.T) {
	w := newWorld(t)
	key, dir := trust.NewPrivateKey(), t.TempDir()
	if err := trust.SaveKey(filepath.Join(dir, meshKeyFile), key); err != nil {
		t.Fatal(err)
	}
	s, err := w.entry(trust.NewPrivateKey(), dir, "alpha").Enter(t.Context())
	if err != nil || s.Mesh != key.Public() {
		t.Errorf("mesh %s, %v", s.Mesh, err)
	}
}
