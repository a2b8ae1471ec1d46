package mounts

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// Overlay shows at a folder what is in lower, and has what is written there be in upper; work is a folder beside upper, on its
// file system. What a file is numbered by there is as in lower until it is written: inodes are neither numbered anew nor indexed,
// nor are folders and files that are renamed or changed in their attributes alone left in lower.
func Overlay(at, lower, upper, work string) error {
	if strings.ContainsAny(lower+upper+work, `,:\`) {
		return fmt.Errorf("overlay at %s: %w: the kernel takes no folder with one of , : and \\ in its path", at, content.ErrInvalid)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,xino=off,index=off,redirect_dir=nofollow,metacopy=off", lower, upper, work)
	if err := unix.Mount("grange", at, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlay at %s: %w", at, os.NewSyscallError("mount", err))
	}
	return nil
}

// IsOverlaid reports whether a folder is one of Overlay's.
func IsOverlaid(dir string) bool { return isOf(dir, unix.OVERLAYFS_SUPER_MAGIC) }

// IsServed reports whether a folder is one of Serve's, and answers.
func IsServed(dir string) bool { return isOf(dir, unix.FUSE_SUPER_MAGIC) }

// isOf asks for the mount itself, too: what is not shown yet may lie on a file system of that kind.
func isOf(dir string, kind int64) bool {
	var fs unix.Statfs_t
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, 0, &st) == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 && unix.Statfs(dir, &fs) == nil && int64(fs.Type) == kind
}

// Detach has nothing be shown at a folder any more that is of Overlay or Serve; who uses it keeps what is open there.
func Detach(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
}
