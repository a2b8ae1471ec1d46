//go:build unix

package dir

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// TestReadOnlyFoldersSaySo writes to a folder as somebody who may not.
func TestReadOnlyFoldersSaySo(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, root + "/" + tmpDir, root + "/records"} {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o755) })
	}
	asNobody(t, root)
	if err := bucket.Probe(t.Context(), b); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("probe: %v, want ErrReadOnly", err)
	}
	if err := b.Delete(t.Context(), "records/a"); !errors.Is(err, content.ErrReadOnly) {
		t.Errorf("delete: %v, want ErrReadOnly", err)
	}
}

// TestFoldersOfOthersAreForbidden reads where somebody may not.
func TestFoldersOfOthersAreForbidden(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	records := root + "/records"
	if err := os.Chmod(records, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(records, 0o755) })
	asNobody(t, root)
	if _, err := b.Get(t.Context(), "records/a", bucket.Range{}); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("get: %v, want ErrForbidden", err)
	}
	for info, err := range b.List(t.Context(), "records/", "") {
		if !errors.Is(err, content.ErrForbidden) {
			t.Errorf("list: %+v, %v, want ErrForbidden", info, err)
		}
	}
}

// asNobody goes on as a user who may only do what everybody may, until the test
// ends: root may read and write anywhere. The way to root is open to that user.
func asNobody(t *testing.T, root string) {
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil { // the test's own folder
		t.Fatal(err)
	}
	if err := syscall.Setegid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setegid(0) })
	if err := syscall.Seteuid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Seteuid(0) })
}

// TestOthersAreKeptOut looks at all that a bucket makes.
func TestOthersAreKeptOut(t *testing.T) {
	old := syscall.Umask(0) // which would hide what is asked for
	defer syscall.Umask(old)
	root := filepath.Join(t.TempDir(), "new", "origin")
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/image/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		seen++
		return err
	})
	if err != nil || seen != 6 { // the root, .tmp, .lock, two folders, a file
		t.Fatalf("%d files and folders, error %v", seen, err)
	}
}

// TestWideFoldersAreClosed opens folders that others may read: one that is a bucket's
// is closed, and the log says so; one that others use is refused, as it is not ours to
// close.
func TestWideFoldersAreClosed(t *testing.T) {
	for name, c := range map[string]struct {
		mode   os.FileMode
		holds  string
		closed bool
	}{
		"empty":                  {0o755, "", true},
		"a bucket":               {0o755, "grange.json", true},
		"a bucket, group only":   {0o750, lockName, true},
		"others' files":          {0o755, "letters", false},
		"a place for all":        {0o777 | os.ModeSticky, "", false},
		"closed already, theirs": {0o700, "letters", true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if c.holds != "" {
				if err := os.WriteFile(filepath.Join(root, c.holds), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(root, c.mode); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			_, err := Open(t.Context(), root, slog.New(slog.NewTextHandler(&log, nil)))
			info, serr := os.Stat(root)
			if serr != nil {
				t.Fatal(serr)
			}
			if !c.closed {
				if !errors.Is(err, content.ErrForbidden) || info.Mode().Perm() != c.mode.Perm() {
					t.Fatalf("%v, mode %s; want ErrForbidden, and the mode as it was", err, info.Mode())
				}
				return
			}
			if err != nil || info.Mode().Perm() != 0o700 || (log.Len() > 0) != (c.mode != 0o700) {
				t.Fatalf("%v, mode %s, log %q", err, info.Mode(), log.String())
			}
		})
	}
}

// TestAWideFolderOfAnotherUser is one that this user can't close.
func TestAWideFolderOfAnotherUser(t *testing.T) {
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // then it is ours
		t.Log("not root: only root can make a folder of somebody else")
		return
	}
	asNobody(t, root)
	if _, err := Open(t.Context(), root, slog.New(slog.DiscardHandler)); !errors.Is(err, content.ErrForbidden) || !strings.Contains(fmt.Sprint(err), "chmod 700") {
		t.Fatalf("%v, want ErrForbidden and what to do", err)
	}
}

// TestWhatIsNoFile puts in the place of an object what would hold up, or lead away,
// whoever opens it.
func TestWhatIsNoFile(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/good", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(root, "records", name) }
	short := filepath.Join(os.TempDir(), fmt.Sprintf("grange-dir-%d.sock", os.Getpid())) // a socket's name is short
	socket, err := net.Listen("unix", short)
	if err != nil {
		t.Fatal(err)
	}
	socket.(*net.UnixListener).SetUnlinkOnClose(false)
	socket.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(
		os.Rename(short, at("socket")),
		syscall.Mkfifo(at("fifo"), 0o600),
		os.WriteFile(secret, []byte("secret"), 0o600),
		os.Symlink(secret, at("link")),
		os.Symlink("/dev/zero", at("zero")),
		os.Symlink("nowhere", at("dangling")),
	); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"socket", "fifo", "link", "zero", "dangling"} {
		key := "records/" + name
		if _, err := b.Get(t.Context(), key, bucket.Range{}); !errors.Is(err, content.ErrCorrupt) || !strings.Contains(fmt.Sprint(err), at(name)) {
			t.Errorf("get %s: %v, want ErrCorrupt with its path", name, err)
		}
		for _, cond := range []bucket.Condition{{}, bucket.IfAbsent()} {
			if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte("x")), cond); !errors.Is(err, content.ErrCorrupt) {
				t.Errorf("put %s: %v, want ErrCorrupt", name, err)
			}
		}
	}
	var keys []string
	for info, err := range b.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, info.Key)
	}
	if !slices.Equal(keys, []string{"records/good"}) {
		t.Errorf("listed: %v", keys)
	}
	if err := b.Delete(t.Context(), "records/fifo"); err != nil {
		t.Errorf("a FIFO stays: %v", err)
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v: what a link led to was touched", got, err)
	}
}

// TestWhatIsBesideABucket: what a file system puts at its top does not end a list, though nobody but root may read it; a
// folder that is somewhere else does, as what is there would be left out.
func TestWhatIsBesideABucket(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if _, err := b.Put(t.Context(), "records/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "lost+found"), 0); err != nil {
		t.Fatal(err)
	}
	list := func() (keys []string, err error) {
		for info, failed := range b.List(t.Context(), "", "") {
			if err = failed; err == nil {
				keys = append(keys, info.Key)
			}
		}
		return keys, err
	}
	t.Run("lost+found", func(t *testing.T) {
		if err := errors.Join(os.Chmod(root, 0o755), os.Chmod(filepath.Join(root, "records"), 0o755)); err != nil {
			t.Fatal(err)
		}
		asNobody(t, root)
		if keys, err := list(); len(keys) != 1 || err != nil {
			t.Errorf("%v, %v", keys, err)
		}
	})
	elsewhere := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.Mkdir(elsewhere, 0o755), os.Symlink(elsewhere, filepath.Join(root, "records", "image"))); err != nil {
		t.Fatal(err)
	}
	if keys, err := list(); !errors.Is(err, content.ErrInvalid) || !strings.Contains(err.Error(), "records/image") {
		t.Errorf("%v, %v", keys, err)
	}
}
