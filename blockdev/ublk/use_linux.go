package ublk

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
)

// notHeld is in the place of what hold returns.
const notHeld = -1

// hold keeps the kernel from beginning to use a disk, until the descriptor is
// closed that it returns. When somebody has the disk or a part of it open or mounted
// it fails with content.ErrConflict, and says who.
func hold(id uint32) (int, error) {
	devices, err := numbers(id)
	if err != nil {
		return notHeld, err
	}
	if user := cmp.Or(holder(devices), loop(id)); user != "" {
		return notHeld, fmt.Errorf("%w: %s is in use: %s; end that, or force it", content.InUse, devicePath(id), user)
	}
	// The kernel's own users, file systems and device mappers in any namespace,
	// hold it exclusively.
	fd, err := unix.Open(devicePath(id), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return notHeld, fmt.Errorf("%w: %s is in use: the kernel has mounted or mapped it or a part of it; end that, or force it", content.InUse, devicePath(id))
	case errors.Is(err, unix.EACCES):
		return notHeld, fmt.Errorf("open %s to see whether it is in use: %w: give the node's user the group of that file, or force it", devicePath(id), err)
	case err != nil:
		return notHeld, fmt.Errorf("open %s to see whether it is in use: %w", devicePath(id), err)
	}
	return fd, nil
}

// numbers returns MAJOR:MINOR of a disk and its partitions.
func numbers(id uint32) ([]string, error) {
	disk := fmt.Sprintf("/sys/block/ublkb%d", id)
	parts, err := filepath.Glob(filepath.Join(disk, "ublkb*", "dev"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, file := range append(parts, filepath.Join(disk, "dev")) {
		number, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		out = append(out, strings.TrimSpace(string(number)))
	}
	return out, nil
}

// holder names who has mounted or opened one of the devices, empty if nobody that
// can be seen has.
func holder(devices []string) string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err == nil {
		for line := range strings.Lines(string(mounts)) {
			if fields := strings.Fields(line); len(fields) > 4 && slices.Contains(devices, fields[2]) {
				return "mounted on " + fields[4]
			}
		}
	}
	// Files of processes that this one may not look into are not listed.
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, file := range files {
		if !opens(file, devices) {
			continue
		}
		process := filepath.Dir(filepath.Dir(file))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue // it has ended
		}
		return fmt.Sprintf("open in process %s (%s)", filepath.Base(process), strings.TrimSpace(string(name)))
	}
	return ""
}

// loop names a loop device over the disk or a part of it, empty if there is none: it
// holds neither exclusively, and no process has them open.
func loop(id uint32) string {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return ""
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		path := strings.TrimSpace(string(text))
		if part, ok := strings.CutPrefix(path, devicePath(id)); err == nil && ok && (part == "" || part[0] == 'p') {
			return fmt.Sprintf("/dev/%s stands on %s", filepath.Base(filepath.Dir(filepath.Dir(file))), path)
		}
	}
	return ""
}

// opens reports whether an open file is one of the devices. Others than those in
// a /dev are not looked at: a file of a lost server would hang who does.
func opens(file string, devices []string) bool {
	target, err := os.Readlink(file)
	if err != nil || !strings.Contains(target, "/dev/") {
		return false
	}
	var stat unix.Stat_t
	if unix.Stat(file, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFBLK {
		return false
	}
	return slices.Contains(devices, fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev)))
}
