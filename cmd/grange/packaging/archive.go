package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// compress replaces a file by FILE.gz, which says nothing of when and where.
func (r release) compress(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err = w.Write(b)
	err = errors.Join(err, w.Close())
	return errors.Join(err, os.WriteFile(file+".gz", out.Bytes(), 0o644), os.Remove(file))
}

// entry is a file, or a folder, of an archive.
type entry struct {
	name string
	mode int64
	uid  int
	data []byte // nil for a folder
}

// pack writes a tar file whose bytes are of the entries alone.
func pack(entries []entry, at time.Time) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, ModTime: at, Typeflag: tar.TypeReg, Size: int64(len(e.data)), Format: tar.FormatPAX}
		if e.data == nil {
			h.Name, h.Typeflag = e.name+"/", tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close() // which writes the end
	return out.Bytes(), err
}

// archive makes the .tar.gz, for Windows the .zip, of those who install by hand.
func (r release) archive(target string) error {
	dir, name := r.dir(target), fmt.Sprintf("grange_%s_%s", r.version, strings.ReplaceAll(target, "/", "_"))
	files := []string{program(target), "README.md", "LICENSE", "files/seed.yaml"}
	if !strings.HasPrefix(target, "windows/") {
		files = append(files, "completion/grange.bash", "completion/grange.zsh", "completion/grange.fish")
		pages, err := names(filepath.Join(dir, "man"))
		if err != nil {
			return err
		}
		for _, page := range pages {
			files = append(files, "man/"+page)
		}
	}
	var entries []entry
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		e := entry{name: path.Join(name, strings.TrimPrefix(file, "files/")), mode: 0o644, data: data}
		if file == program(target) {
			e.mode = 0o755
		}
		entries = append(entries, e)
	}
	if strings.HasPrefix(target, "windows/") {
		return r.zip(filepath.Join(r.out, name+".zip"), entries)
	}
	packed, err := pack(entries, r.made)
	to := filepath.Join(r.out, name+".tar")
	return errors.Join(err, os.WriteFile(to, packed, 0o644), r.compress(to))
}

func (r release) zip(to string, entries []entry) error {
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, e := range entries {
		f, err := w.CreateHeader(&zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: r.made})
		if err == nil {
			_, err = f.Write(e.data)
		}
		if err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, out.Bytes(), 0o644)
}

// sums writes SHA256SUMS of a folder's files, for sha256sum --check.
func sums(dir string) error {
	files, err := names(dir)
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, name := range files {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		fmt.Fprintf(&out, "%x  %s\n", h.Sum(nil), name)
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(out.String()), 0o644)
}
