// Package durable is the one way small files reach the disk: whole or not at
// all, and still there after a power failure once a call has returned.
package durable

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// TempPrefix begins the names of files that are being written: a crash leaves them.
const TempPrefix = ".tmp-"

// WriteFile replaces the file at path by data. A crash leaves the old file or the new one. The steps: write
// and fsync a temporary file beside it, rename, fsync the folder.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return cmp.Or(Place(path, data, perm), SyncDir(filepath.Dir(path)))
}

// Place is WriteFile but for its last step, which the caller takes for all files of the
// folder at once: until then a loss of power may bring the old file back.
func Place(path string, data []byte, perm fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), TempPrefix+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = fill(tmp, data, perm)
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(tmp.Name()))
	}
	return nil
}

func fill(f *os.File, data []byte, perm fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Remove deletes the file at path for good; an absent file is success.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// MkdirAll makes the folder at path, with the parents that it lacks, for good.
func MkdirAll(path string, perm fs.FileMode) error {
	if isDir(path) {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !isDir(path) { // by another, meanwhile
		return err
	}
	return SyncDir(parent)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// SyncDir makes creations, renames and removals in dir durable. Windows has no
// such call and orders its metadata by itself.
func SyncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
