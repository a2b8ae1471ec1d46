package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// A fitted file system has half as much free space again as its files take,
	// for what a guest writes first, and at least the minimum.
	fittedMin     = 256 << 20
	fittedRound   = 64 << 20
	fittedPerFile = 4 << 10 // an inode and the rest of its last block
)

// tree makes an ext4 disk of a directory or tar file: afresh, or by bringing a
// copy of the previous disk up to date.
func (o Options) tree(ctx context.Context) (Disk, error) {
	dir := o.Path
	if o.Format == Tar {
		if os.Geteuid() != 0 {
			return nil, fmt.Errorf("%w: unpacked by any other than root, the files of a tar file would change their owners; or import a directory or a disk file", os.ErrPermission)
		}
		tmp, err := os.MkdirTemp(o.Temp, "untar-*")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		o.Note("unpacking the tar file")
		if err := run(ctx, "tar", "--numeric-owner", "-xpf", o.Path, "-C", tmp); err != nil {
			return nil, fmt.Errorf("%w: %w", content.ErrInvalid, err)
		}
		dir = tmp
	}
	f, err := os.CreateTemp(o.Temp, "tree-*.ext4")
	if err != nil {
		return nil, err
	}
	path := f.Name()
	err = o.fill(ctx, dir, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return openWorking(path)
}

func (o Options) fill(ctx context.Context, dir string, f *os.File) error {
	if o.Previous != nil {
		o.Note("copying the previous version")
		if err := o.Previous(ctx, f); err != nil {
			return fmt.Errorf("copy the previous version: %w", err)
		}
		if isExt4(f) {
			return o.update(ctx, dir, f)
		}
		o.Note("the previous version is not an ext4 file system; making a new one")
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	return o.create(ctx, dir, f)
}

// isExt4 looks for the superblock's mark.
func isExt4(f *os.File) bool {
	magic := make([]byte, 2)
	_, err := f.ReadAt(magic, 1024+56)
	return err == nil && string(magic) == "\x53\xef"
}

// create makes the file system with mke2fs, which needs no mount.
func (o Options) create(ctx context.Context, dir string, f *os.File) error {
	size := o.Size
	if size == 0 {
		var err error
		if size, err = fitted(dir); err != nil {
			return err
		}
	}
	if err := checkSize(size); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	o.Note("making an ext4 file system")
	return run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d", dir, f.Name())
}

// fitted returns a size that holds the tree with room to spare.
func fitted(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		total += fittedPerFile
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			total += info.Size()
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	total = max(total+total/2, fittedMin)
	return (total + fittedRound - 1) / fittedRound * fittedRound, nil
}

// corrected is how e2fsck ends when it has mended what it found.
const corrected = 1

// grow makes room when a larger size was asked for; an image never shrinks.
func (o Options) grow(ctx context.Context, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	switch {
	case o.Size == 0 || o.Size == info.Size():
		return nil
	case o.Size < info.Size():
		return fmt.Errorf("%w: --size %d is smaller than the previous version, %d", content.ErrConflict, o.Size, info.Size())
	}
	if err := checkSize(o.Size); err != nil {
		return err
	}
	if err := f.Truncate(o.Size); err != nil {
		return err
	}
	var ended *exec.ExitError
	if err := run(ctx, "e2fsck", "-fp", f.Name()); err != nil && !(errors.As(err, &ended) && ended.ExitCode() == corrected) {
		return err
	}
	return run(ctx, "resize2fs", f.Name(), strconv.FormatInt(o.Size/1024, 10)+"K")
}
