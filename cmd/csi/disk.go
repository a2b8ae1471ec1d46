//go:build linux

package csi

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The file systems that there are.
const ext4, xfs = "ext4", "xfs"

const (
	// edge is how much of either end of a disk is zero that is taken for empty: all that is known to make file systems,
	// partitions, volume groups and the like begins or ends within it.
	edge = 4 << 20
	// markName is the file in the folder of a stage that says that a disk, which was empty, is being formatted.
	markName = ".grange-formatting"

	// What blkid ends with that has found nothing, and e2fsck that has mended what it found.
	blkidNothing, fsckMended = 2, 1
)

// disk is a block device that is to be mounted.
type disk struct {
	path     string
	kind     string // file system; "" is what it has, ext4 where it has none
	readonly bool
	options  []string
	// mark says what disk it is: of one that is being formatted, for a repetition.
	mark string
}

// run runs a program to its end: one that writes to a disk is not to be broken off. Its output is that of the error.
func run(ctx context.Context, name string, args ...string) (out []byte, code int, err error) {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err = cmd.Output()
	if err != nil {
		code = cmd.ProcessState.ExitCode()
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(append(said.Bytes(), out...)))
	}
	return out, code, err
}

// stage mounts the disk at a folder, which may be there, and done already.
func (k disk) stage(ctx context.Context, folder string) error {
	all, err := mountsOf(k.path)
	if err != nil || at(all, folder) >= 0 {
		return err
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	has, err := k.prepare(ctx, filepath.Join(folder, markName))
	if err != nil {
		return err
	}
	options := append([]string{map[bool]string{true: "ro", false: "rw"}[k.readonly]}, k.options...)
	if has == xfs { // a clone has its UUID from what it was made of, which may be mounted here too
		options = append(options, "nouuid")
	}
	if k.readonly { // what its journal has is not to be written
		options = append(options, map[string]string{xfs: "norecovery", ext4: "noload"}[has])
	}
	if _, _, err := run(ctx, "mount", "-t", has, "-o", strings.Join(options, ","), k.path, folder); err != nil || k.readonly {
		return err
	}
	return grow(ctx, k.path, has, folder) // it may have been made of something smaller
}

// prepare returns the file system that the disk has: after a check, or after it was made where the disk is empty.
func (k disk) prepare(ctx context.Context, mark string) (has string, err error) {
	has, err = signature(ctx, k.path)
	switch {
	case err != nil:
		return "", err
	case has == "" && k.readonly:
		return "", status.Errorf(codes.FailedPrecondition, "%s has no file system, and is only read", k.path)
	case has == "":
		has, err = k.format(ctx, mark)
	case has != ext4 && has != xfs || k.kind != "" && k.kind != has:
		return "", status.Errorf(codes.FailedPrecondition, "%s has %s, not %s: ask for what it has, or for a block device", k.path, has, k.kind)
	case has == ext4 && !k.readonly:
		if _, code, failed := run(ctx, "e2fsck", "-p", k.path); failed != nil && code != fsckMended {
			return "", fmt.Errorf("the file system wants a hand: %w", failed)
		}
	}
	if err == nil {
		err = os.Remove(mark)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return has, err
}

// signature returns what blkid finds on a disk, "" for nothing. Where it can't tell that is an error, never nothing.
func signature(ctx context.Context, path string) (string, error) {
	out, code, err := run(ctx, "blkid", "-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", path)
	switch {
	case err != nil && code == blkidNothing:
		return "", nil
	case err != nil:
		return "", err
	}
	kind := ""
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch {
		case key == "TYPE":
			return value, nil
		case key == "PTTYPE":
			kind = value + " partitions"
		}
	}
	if kind == "" {
		return "", fmt.Errorf("blkid says of %s: %q", path, out)
	}
	return kind, nil
}

// format makes a file system on a disk on which blkid has found nothing: if what can be read of it is zero, or a format that was
// cut short of this very disk has left something.
func (k disk) format(ctx context.Context, mark string) (string, error) {
	kind := cmp.Or(k.kind, ext4)
	if was, err := os.ReadFile(mark); err != nil || string(was) != k.mark {
		if err := empty(k.path); err != nil {
			return "", err
		}
		if err := os.WriteFile(mark, []byte(k.mark), 0o600); err != nil {
			return "", err
		}
	}
	args := []string{"-q", "-F", "-m", "0", k.path} // -F: it is a whole disk
	if kind == xfs {
		args = []string{"-q", k.path}
	}
	if _, _, err := run(ctx, "mkfs."+kind, args...); err != nil {
		return "", err
	}
	return kind, nil
}

// empty fails unless both ends of a disk can be read, and are zero.
func empty(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	b, zero := make([]byte, min(size, edge)), make([]byte, min(size, edge))
	for _, at := range []int64{0, size - int64(len(b))} {
		if _, err := f.ReadAt(b, at); err != nil {
			return fmt.Errorf("whether %s is empty can't be told: %w", path, err)
		}
		if !bytes.Equal(b, zero) {
			return status.Errorf(codes.FailedPrecondition, "%s has data and no file system that is known: it is not formatted; take it as a block device", path)
		}
	}
	return nil
}

// grow lets the file system of a mounted disk have all of it; one that has is left as it is.
func grow(ctx context.Context, path, kind, folder string) (err error) {
	if kind == xfs {
		_, _, err = run(ctx, "xfs_growfs", folder)
	} else {
		_, _, err = run(ctx, "resize2fs", path)
	}
	return err
}

// bind shows a tree, or a disk, at a target that need not be there.
func bind(ctx context.Context, from, target string, block, readonly bool) error {
	err := os.MkdirAll(filepath.Dir(target), 0o750)
	if err == nil && block {
		var f *os.File
		if f, err = os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o660); err == nil {
			err = f.Close()
		}
	} else if err == nil {
		err = os.MkdirAll(target, 0o750)
	}
	if err != nil {
		return err
	}
	if _, _, err := run(ctx, "mount", "--bind", from, target); err != nil || !readonly {
		return err
	}
	if _, _, err := run(ctx, "mount", "-o", "bind,remount,ro", target); err != nil {
		return errors.Join(err, unmount(target))
	}
	return nil
}

// unmount ends all mounts at a path, of which none is success.
func unmount(path string) (err error) {
	for err == nil {
		err = unix.Unmount(path, 0)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // nothing is mounted there any more
		return nil
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}

// mount is one that this process sees.
type mount struct {
	*mountinfo.Info
	disk bool // a device itself, bound to a file
}

func (m mount) readonly() bool { return slices.Contains(strings.Split(m.Options, ","), "ro") }

// real is a path as the kernel lists what is mounted there.
func real(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return filepath.Clean(path)
}

// at finds the mount at a path; -1 is none.
func at(all []mount, path string) int {
	path = real(path)
	return slices.IndexFunc(all, func(m mount) bool { return m.Mountpoint == path })
}

// mountsOf are those of a disk: of what is on it, and of itself.
func mountsOf(path string) (of []mount, err error) {
	var disk, s unix.Stat_t
	if err := unix.Stat(path, &disk); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if disk.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, fmt.Errorf("%s is no block device", path)
	}
	_, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		itself := (m.FSType == "devtmpfs" || m.FSType == "tmpfs") && unix.Stat(m.Mountpoint, &s) == nil && s.Mode&unix.S_IFMT == unix.S_IFBLK && s.Rdev == disk.Rdev
		if itself || unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == disk.Rdev {
			of = append(of, mount{m, itself})
		}
		return true, false
	})
	return of, err
}

// sizeOf is how large a disk is.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}
