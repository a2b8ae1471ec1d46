package dir

import (
	"io/fs"
	"os"
	"syscall"
	"time"
)

// changed returns when the file system last noted a change of a file, be it of its times
// alone: nobody can set that.
func changed(fi fs.FileInfo) (time.Time, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Time{}, false
	}
	return time.Unix(st.Ctim.Unix()), true
}

// isLocal reports whether a file lies on a disk or in the memory of this host: reads
// of it end. Of a file system that is not known here it is false.
func isLocal(f *os.File) bool {
	var s syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &s); err != nil {
		return false
	}
	switch uint32(s.Type) { // linux/magic.h
	case 0xef53, // ext2, ext3, ext4
		0x58465342, // xfs
		0x9123683e, // btrfs
		0x2fc12fc1, // zfs
		0xca451a4e, // bcachefs
		0xf2f52010, // f2fs
		0x01021994, // tmpfs
		0x794c7630: // overlayfs
		return true
	}
	return false
}
