package dir

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// inode is 0: the times that Windows keeps are fine enough.
func inode(fs.FileInfo) uint64 { return 0 }

func isReadOnly(err error) bool { return errors.Is(err, windows.ERROR_WRITE_PROTECT) }

func isNotFolder(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }

// errLink: a symbolic link stands where a file is looked for.
var errLink = errors.New("a symbolic link")

// openNoWait opens a file for reading, and does not follow a symbolic link.
func openNoWait(name string) (*os.File, error) {
	if fi, err := os.Lstat(name); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		return nil, errLink
	}
	return os.Open(name)
}

// isForeign reports whether openNoWait met a symbolic link.
func isForeign(err error) bool { return errors.Is(err, errLink) }
