package vm

import (
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// archive is a cpio archive that the kernel unpacks as the first root file system.
// Everything in it belongs to root. The first error stays, and close returns it.
type archive struct {
	w    *cpio.Writer
	dirs map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: cpio.NewWriter(w), dirs: map[string]bool{".": true}}
}

// entry adds a file, and the directories above it, each once.
func (a *archive) entry(h cpio.Header, body io.Reader) {
	a.dir(path.Dir(h.Name))
	if a.err == nil {
		a.err = a.w.WriteHeader(&h)
	}
	if a.err == nil && body != nil {
		_, a.err = io.CopyN(a.w, body, h.Size)
	}
}

func (a *archive) dir(name string) {
	if !a.dirs[name] {
		a.dirs[name] = true
		a.entry(cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755}, nil)
	}
}

func (a *archive) symlink(name, target string) {
	a.entry(cpio.Header{Name: name, Size: int64(len(target)), Mode: cpio.TypeSymlink | 0o777}, strings.NewReader(target))
}

// text adds a file that all may run.
func (a *archive) text(name, body string) {
	a.entry(cpio.Header{Name: name, Size: int64(len(body)), Mode: cpio.TypeReg | 0o755}, strings.NewReader(body))
}

// copy adds a file of the host with its permissions, or a folder with all in it.
func (a *archive) copy(name, from string) {
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(strings.TrimPrefix(p, from)))
		if d.IsDir() {
			a.dir(to)
			return a.err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err == nil {
			a.entry(cpio.Header{Name: to, Size: info.Size(), Mode: cpio.TypeReg | cpio.FileMode(info.Mode().Perm())}, f)
			err = a.err
		}
		return err
	})
	if a.err == nil {
		a.err = err
	}
}

func (a *archive) close() error {
	if a.err == nil {
		a.err = a.w.Close()
	}
	return a.err
}
