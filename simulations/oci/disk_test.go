package oci

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/simulations/lab"
)

// workshop builds images with buildah, as root without containers.
type workshop struct {
	t   *testing.T
	dir string
}

func (w workshop) buildah(args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "buildah", append([]string{"--root", filepath.Join(w.dir, "root"), "--runroot", filepath.Join(w.dir, "run"), "--storage-driver", "vfs"}, args...)...)
	cmd.Env = append(os.Environ(), "BUILDAH_ISOLATION=chroot")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("buildah %s: %v: %s", strings.Join(args, " "), err, said.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// layer has change work on what an image has, and makes another of that.
func (w workshop) layer(from, name string, change func(root string) error) {
	w.t.Helper()
	container := w.buildah("from", from)
	if err := change(w.buildah("mount", container)); err != nil {
		w.t.Fatal(err)
	}
	w.buildah("commit", "--quiet", container, name)
}

// files are those of a folder, each with all that is to stay of it.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	out, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		if err != nil || rel == "." || rel == "lost+found" {
			if rel == "lost+found" {
				return filepath.SkipDir
			}
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		said := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Rdev)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			said += fmt.Sprintf(" %d %x %d", st.Size, sha256.Sum256(b), st.Mtim.Sec)
			if st.Nlink > 1 {
				if first[st.Ino] == "" {
					first[st.Ino] = rel
				}
				said += " as " + first[st.Ino]
			}
		case syscall.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			said += " to " + to
		}
		value := make([]byte, 100)
		if n, err := unix.Lgetxattr(path, "security.capability", value); err == nil {
			said += fmt.Sprintf(" may %x", value[:n])
		}
		out[rel] = said
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// furnish makes files of all kinds.
func furnish(root string) error {
	at := func(name string) string { return filepath.Join(root, name) }
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	for _, dir := range []string{"etc", "usr/bin", "var/cache/old", "srv/data", "dev"} {
		do(os.MkdirAll(at(dir), 0o755))
	}
	do(os.WriteFile(at("etc/motd"), []byte("first\n"), 0o640))
	do(os.WriteFile(at("usr/bin/tool"), bytes.Repeat([]byte("program "), 1<<17), 0o755))
	do(os.Chown(at("usr/bin/tool"), 12, 34))
	do(os.Chmod(at("usr/bin/tool"), 0o755|fs.ModeSetuid))
	do(unix.Setxattr(at("usr/bin/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	do(os.Link(at("usr/bin/tool"), at("usr/bin/same")))
	do(os.Symlink("usr/bin", at("bin")))
	do(os.WriteFile(at("var/cache/old/file"), []byte("x"), 0o600))
	do(os.WriteFile(at("srv/data/gone"), []byte("x"), 0o600))
	do(os.WriteFile(at("srv/data/stays"), []byte("y"), 0o604))
	do(os.Chmod(at("srv"), 0o1777))
	do(unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	return errors.Join(errs...)
}

// TestImageOfBuildah: an image of three layers, with files removed, folders replaced and links, becomes a disk with the
// files that its container has, by an archive of OCI's and one of docker's.
func TestImageOfBuildah(t *testing.T) {
	l, err := lab.New(t.Context(), lab.Command(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := l.Start(t.Context(), "main", "")
	if err != nil {
		t.Fatal(err)
	}
	w := workshop{t, t.TempDir()}
	w.layer("scratch", "one", furnish)
	w.layer("one", "two", func(root string) error {
		return errors.Join(os.Remove(filepath.Join(root, "srv/data/gone")), os.RemoveAll(filepath.Join(root, "var/cache/old")), os.Mkdir(filepath.Join(root, "var/cache/old"), 0o711),
			os.WriteFile(filepath.Join(root, "etc/motd"), []byte("second\n"), 0o644), os.Link(filepath.Join(root, "usr/bin/tool"), filepath.Join(root, "usr/bin/third")))
	})
	w.layer("two", "three", func(root string) error {
		return errors.Join(os.RemoveAll(filepath.Join(root, "usr/bin/same")), os.WriteFile(filepath.Join(root, "var/cache/old/new"), []byte("n"), 0o600))
	})
	want := files(t, w.buildah("mount", w.buildah("from", "three")))
	for name, to := range map[string]string{"oci": "oci-archive:", "docker": "docker-archive:"} {
		archive := filepath.Join(w.dir, name+".tar")
		w.buildah("push", "--quiet", "three", to+archive+":team/three:1")
		source := archive
		if name == "oci" {
			source = "oci-archive:" + archive
		}
		if out, err := n.Run(t.Context(), "image", "import", name, source); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		raw, at := filepath.Join(w.dir, name+".raw"), filepath.Join(w.dir, name)
		if out, err := n.Run(t.Context(), "image", "export", name, raw); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop,ro", raw, at).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
		got := files(t, at)
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
		for _, path := range slices.Sorted(maps.Keys(want)) {
			if got[path] != want[path] {
				t.Errorf("%s: %s is %q, want %q", name, path, got[path], want[path])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d files, want %d: %q", name, len(got), len(want), slices.Sorted(maps.Keys(got)))
		}
	}
}
