package vm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// archive writes a cpio archive in the "newc" form, which the kernel unpacks as
// the first root file system. Everything in it belongs to root. The first error
// stays, and close returns it.
type archive struct {
	w     io.Writer
	files int64
	size  int64
	dirs  map[string]bool
	err   error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{}} }

// Kinds of file, as in stat(2).
const (
	kindDir     = 0o040000
	kindFile    = 0o100000
	kindSymlink = 0o120000
)

// entry adds one file; size bytes of its body follow.
func (a *archive) entry(name string, mode, size int64) {
	a.files++
	header := "070701"
	for _, field := range []int64{a.files, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, int64(len(name)) + 1, 0} {
		header += fmt.Sprintf("%08x", field)
	}
	a.write(header + name + "\x00")
	a.pad()
}

func (a *archive) write(s string) {
	if a.err != nil {
		return
	}
	n, err := io.WriteString(a.w, s)
	a.size, a.err = a.size+int64(n), err
}

// pad fills up to the next multiple of four bytes, where all parts begin.
func (a *archive) pad() { a.write("\x00\x00\x00"[:(4-a.size%4)%4]) }

// dir adds a directory and those above it, each once.
func (a *archive) dir(name string) {
	if name == "." || a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.entry(name, kindDir|0o755, 0)
}

func (a *archive) symlink(name, target string) {
	a.dir(path.Dir(name))
	a.entry(name, kindSymlink|0o777, int64(len(target)))
	a.write(target)
	a.pad()
}

// text adds a file that all may run.
func (a *archive) text(name, body string) {
	a.dir(path.Dir(name))
	a.entry(name, kindFile|0o755, int64(len(body)))
	a.write(body)
	a.pad()
}

// copy adds a file of the host with its permissions, or a folder with all in it.
func (a *archive) copy(name, from string) {
	if a.err != nil {
		return
	}
	a.err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(rel))
		if d.IsDir() {
			a.dir(to)
			return a.err
		}
		a.file(to, p)
		return a.err
	})
}

func (a *archive) file(name, from string) {
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, kindFile|int64(info.Mode().Perm()), info.Size())
	if a.err == nil {
		var n int64
		n, a.err = io.CopyN(a.w, f, info.Size())
		a.size += n
	}
	a.pad()
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0)
	return a.err
}
