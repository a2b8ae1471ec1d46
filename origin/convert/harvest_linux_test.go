package convert

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert/files"
)

// hostile is a tree that has a link to /, and "name" as another name of a path.
func hostile(t *testing.T, same string) (g grove) {
	t.Helper()
	w, err := tree.NewWriter(tree.Config{Codec: content.NewCodec(), Add: func(_ context.Context, _ uint64, raw []byte) error {
		g = append(g, bytes.Clone(raw))
		return nil
	}})
	must(t, err, w.Enter(tree.Entry{Mode: tree.Folder | 0o755}),
		w.Add(t.Context(), tree.Entry{Name: []byte("link"), Mode: tree.Link | 0o777, Target: []byte("/")}, nil, nil),
		w.Add(t.Context(), tree.Entry{Name: []byte("name"), Mode: tree.Regular | 0o644, Same: []byte(same)}, nil, nil), w.Leave())
	_, err = w.Close(t.Context())
	must(t, err)
	return g
}

// TestNamesOfWhatLiesOutside: a tree of a member can't have files of this host get a name in the folder it is written to.
func TestNamesOfWhatLiesOutside(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("words"), 0o600))
	for _, same := range []string{secret, "../../" + filepath.Base(filepath.Dir(filepath.Dir(secret))) + "/001/secret", "link" + secret, "name", "nowhere", "."} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "old"), nil, 0o600))
		if err := Harvest(t.Context(), hostile(t, same).open(t), dir, func(string) {}); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", same, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "old")); err != nil {
			t.Errorf("%s: what was there went for a tree that can't be written: %v", same, err)
		}
	}
}

// TestNamesOutsideStayAsTheyAre: a file of the folder that has another name elsewhere is not written through.
func TestNamesOutsideStayAsTheyAre(t *testing.T) {
	src, out, elsewhere := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "kept")
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("new"), 0o644), os.WriteFile(elsewhere, []byte("old"), 0o600), os.Link(elsewhere, filepath.Join(out, "file")))
	differ(t, "written out", harvested(t, planting(t, Options{Path: src, Format: Dir}), out), described(t, src))
	if b, err := os.ReadFile(elsewhere); err != nil || string(b) != "old" {
		t.Errorf("elsewhere it is %q, %v", b, err)
	}
}

// TestFoldersWithoutTheRight: who owns a tree writes it out as it was, again and over it, also folders that may not be written or entered.
func TestFoldersWithoutTheRight(t *testing.T) {
	const user = 12345
	src, out := t.TempDir(), t.TempDir()
	must(t, os.Chmod(filepath.Dir(src), 0o755), os.MkdirAll(filepath.Join(src, "shut/in"), 0o755), os.WriteFile(filepath.Join(src, "shut/in/file"), []byte("words"), 0o400))
	for _, dir := range []string{src, out, filepath.Join(src, "shut"), filepath.Join(src, "shut/in"), filepath.Join(src, "shut/in/file")} {
		must(t, os.Chown(dir, user, user))
	}
	must(t, os.Chmod(filepath.Join(src, "shut/in"), 0o555), os.Chmod(filepath.Join(src, "shut"), 0o600))
	g := planting(t, Options{Path: src, Format: Dir})
	of := g.open(t)
	for range 2 {
		ended := make(chan error)
		go func() {
			runtime.LockOSThread() // and never free it: it ends with this
			if err := errors.Join(syscall.Setfsgid(user), syscall.Setfsuid(user)); err != nil {
				ended <- err
				return
			}
			ended <- Harvest(t.Context(), of, out, func(text string) { t.Error(text) })
		}()
		must(t, <-ended)
		differ(t, "written out", described(t, out), described(t, src))
	}
}

// TestFoldersThatBecomeLinks: a file is read where it was found, or not at all, though a link took its folder's place meanwhile.
func TestFoldersThatBecomeLinks(t *testing.T) {
	src, elsewhere, found := t.TempDir(), t.TempDir(), (*files.Entry)(nil)
	must(t, os.Mkdir(filepath.Join(src, "in"), 0o755), os.WriteFile(filepath.Join(src, "in/file"), []byte("words"), 0o644), os.WriteFile(filepath.Join(elsewhere, "file"), []byte("other"), 0o600))
	must(t, files.Folder{Root: src}.Each(t.Context(), func(e *files.Entry) error { found = e; return nil }))
	must(t, os.Rename(filepath.Join(src, "in"), filepath.Join(src, "moved")), os.Symlink(elsewhere, filepath.Join(src, "in")))
	if err := found.Data(func(p []byte, _ int64) error { t.Errorf("read %q", p); return nil }); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("%v, want ELOOP", err)
	}
}

// TestWrittenOutWithoutRoot has a child that is nobody write out all that a file system can have: what only root may give comes
// not, and is said, and all else is there.
func TestWrittenOutWithoutRoot(t *testing.T) {
	const from, to, user = "GRANGE_TEST_SOURCE", "GRANGE_TEST_FOLDER", 65534
	if os.Getenv(from) != "" { // the child
		said := ""
		g := planting(t, Options{Path: os.Getenv(from), Format: Dir})
		must(t, Harvest(t.Context(), g.open(t), os.Getenv(to), func(text string) { said += text + "\n" }))
		for _, want := range []string{"disk, null, null2: a device is lost", "its owner is lost", "ping: attribute security.capability is lost"} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is not among what is said:\n%s", want, said)
			}
		}
		return
	}
	src, as, at := t.TempDir(), t.TempDir(), t.TempDir()
	wonders(t, src)
	must(t, os.Link(filepath.Join(src, "null"), filepath.Join(src, "null2")))
	for _, name := range []string{"private", "<12>", "listed", "lastlog", "ping", "shared/inside", "."} { // nobody has to read them
		must(t, unix.Chmod(filepath.Join(src, name), 0o755))
	}
	harvested(t, planting(t, Options{Path: src, Format: Dir}), as)
	shell(t, as, `rm null null2 disk; chown -hR 65534:65534 .; chmod ug-s su; touch -r `+src+` .`)
	out, program := filepath.Join(at, "out"), filepath.Join(at, "test")
	must(t, os.Mkdir(out, 0o700), os.Chown(out, user, user), os.Chmod(filepath.Dir(src), 0o755), os.Chmod(at, 0o777))
	command(t, "cp", os.Args[0], program)
	for range 2 { // also over it
		cmd := exec.CommandContext(t.Context(), program, "-test.run=^TestWrittenOutWithoutRoot$")
		cmd.Dir, cmd.Env = at, append(os.Environ(), from+"="+src, to+"="+out, "TMPDIR="+at)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		differ(t, "written out by nobody", described(t, out), described(t, as))
	}
}
