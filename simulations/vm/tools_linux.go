package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tools are what guests have beside busybox, each with its Debian package.
const tools = `
	fio:fio nbdkit:nbdkit nbd-client:nbd-client
	mke2fs:e2fsprogs mkfs.ext4:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs dumpe2fs:e2fsprogs resize2fs:e2fsprogs
	mkfs.xfs:xfsprogs xfs_growfs:xfsprogs blkid:util-linux
	mount:mount umount:mount losetup:mount blkdiscard:util-linux blockdev:util-linux fallocate:util-linux
	fstrim:util-linux lsblk:util-linux wipefs:util-linux dmesg:util-linux findmnt:util-linux setpriv:util-linux
	dd:coreutils cp:coreutils sha256sum:coreutils stat:coreutils sync:coreutils truncate:coreutils
	cmp:diffutils diff:diffutils find:findutils sh:dash bash:bash tar:tar`

// plugins are the parts of nbdkit that guests have.
const plugins = `
	plugins/nbdkit-file-plugin.so plugins/nbdkit-memory-plugin.so plugins/nbdkit-null-plugin.so
	filters/nbdkit-delay-filter.so filters/nbdkit-error-filter.so`

// toolDisk makes an ext4 file system of this machine's tools and their
// libraries, or finds the one made before. The caller holds the lock of dir.
func toolDisk(ctx context.Context, dir string) (string, error) {
	files, err := toolFiles(ctx)
	if err != nil {
		return "", err
	}
	var key strings.Builder
	var size int64
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return "", err
		}
		size += info.Size()
		fmt.Fprintln(&key, name, info.Size(), info.ModTime().UnixNano())
	}
	disk := filepath.Join(dir, "tools-"+short([]byte(key.String()))+".img")
	if _, err := os.Stat(disk); err == nil {
		return disk, nil
	}
	// Older versions of it, and what a killed process has left.
	old, err := filepath.Glob(filepath.Join(dir, "tools-*"))
	if err != nil {
		return "", err
	}
	for _, name := range old {
		if err := os.RemoveAll(name); err != nil {
			return "", err
		}
	}
	return disk, makeDisk(ctx, disk, files, size)
}

// toolFiles lists the tools and the libraries that they load.
func toolFiles(ctx context.Context) ([]string, error) {
	var files []string
	for pair := range strings.FieldsSeq(tools) {
		name, _, _ := strings.Cut(pair, ":")
		file, err := look(name)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	for name := range strings.FieldsSeq(plugins) {
		found, err := filepath.Glob("/usr/lib/*/nbdkit/" + name)
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("nbdkit's %s: %w: apt-get install nbdkit", name, errors.Join(os.ErrNotExist, err))
		}
		files = append(files, found[0])
	}
	out, err := exec.CommandContext(ctx, "ldd", files...).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd: %w", err)
	}
	return inUsr(append(files, libraries(string(out))...))
}

// libraries reads the lines of ldd:
//
//	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f…)
func libraries(out string) []string {
	var libs []string
	for line := range strings.Lines(out) {
		if _, to, ok := strings.Cut(line, "=>"); ok {
			line = to
		}
		name, _, ok := strings.Cut(strings.TrimSpace(line), " (0x")
		if ok && filepath.IsAbs(name) {
			libs = append(libs, name)
		}
	}
	return libs
}

// inUsr returns the paths, each once, as they are below /usr: /bin, /lib and
// their like are links into it.
func inUsr(files []string) ([]string, error) {
	for i, name := range files {
		dir, err := filepath.EvalSymlinks(filepath.Dir(name))
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(dir, "/usr/") {
			return nil, fmt.Errorf("%s is not below /usr, which is all that a guest gets: install the Debian package of it", name)
		}
		files[i] = filepath.Join(dir, filepath.Base(name))
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// makeDisk copies the files, less the leading /usr, to a new file system.
func makeDisk(ctx context.Context, disk string, files []string, size int64) error {
	tmp := disk + ".tmp"
	defer os.RemoveAll(tmp)
	tree, image := filepath.Join(tmp, "usr"), filepath.Join(tmp, "image")
	for _, name := range files {
		to := filepath.Join(tree, strings.TrimPrefix(name, "/usr/"))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			return err
		}
	}
	mke2fs, err := look("mke2fs")
	if err != nil {
		return err
	}
	const spare = 16 << 20 // inodes and their like, and the last blocks of files
	kib := fmt.Sprintf("%dk", (size+size/16+spare)>>10)
	out, err := exec.CommandContext(ctx, mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0", "-d", tree, image, kib).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	return os.Rename(image, disk)
}
