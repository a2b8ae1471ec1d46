package dir

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/windows"
)

// inode is 0: the times that Windows keeps are fine enough.
func inode(fs.FileInfo) uint64 { return 0 }

func isReadOnly(err error) bool { return errors.Is(err, windows.ERROR_WRITE_PROTECT) }

func isFull(err error) bool { return errors.Is(err, windows.ERROR_DISK_FULL) }

// isNotFolder reports whether a part of a path is a file.
func isNotFolder(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }
