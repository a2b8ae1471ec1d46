package images

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/trust"
)

// TestOthersFileSystemsAreNotMounted: --replace writes into a file system that this node
// has made of files, in the host's kernel, and into no other, that a guest may have
// written.
func TestOthersFileSystemsAreNotMounted(t *testing.T) {
	n := newWorld(t)
	tree, disk := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	for _, path := range []string{filepath.Join(tree, "folder")} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "file"), bytes.Repeat([]byte("text"), 1<<18), 0o644); err != nil {
		t.Fatal(err)
	}
	publish := func(name, source string) string {
		t.Helper()
		view, err := n.Import(t.Context(), name, ImportRequest{Options: convert.Options{Path: source}, Replace: true, Scope: content.Public()})
		if err == nil {
			view, err = n.cfg.Operations.Wait(t.Context(), view.ID)
		}
		if err != nil || view.Error != "" || view.Done != view.Total || view.Total == 0 {
			t.Fatalf("%s from %s: %v, %s, %d of %d", name, source, err, view.Error, view.Done, view.Total)
		}
		return view.Note
	}
	const afresh = "afresh"
	if note := publish("os", tree) + publish("os", tree); strings.Contains(note, afresh) {
		t.Errorf("a tree of this node: %s", note)
	}
	view, err := n.Export("os", disk, false)
	if err == nil {
		_, err = n.cfg.Operations.Wait(t.Context(), view.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	publish("guest", disk) // what a guest has written is brought like this
	if note := publish("guest", tree); !strings.Contains(note, afresh) {
		t.Errorf("a disk that was brought: %q", note)
	}
	if note := publish("guest", tree); strings.Contains(note, afresh) {
		t.Errorf("and then a tree of this node: %s", note)
	}
	piped := filepath.Join(n.cfg.Dir, TempDir, "stdin-1.spool")
	if err := os.Rename(disk, piped); err != nil {
		t.Fatal(err)
	}
	publish("piped", piped)
	if old, err := n.previous(t.Context(), content.KindImage, "piped", true); err != nil || old.body.Source != "standard input" {
		t.Errorf("what came through a pipe: %+v, %v", old, err)
	}
	old, err := n.previous(t.Context(), content.KindImage, "os", true)
	if err != nil || !n.made(old) {
		t.Fatalf("a tree of this node: %v", err)
	}
	if old.Signer.Key = trust.NewPrivateKey().Public(); n.made(old) {
		t.Error("a tree of another node is mounted")
	}
}
