package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/verify"
)

// Export writes an image to a file on this host, in the background: beside the
// file first, so that a cut export leaves none. A file that is there is ErrExists
// unless it is to be replaced.
func (im *Images) Export(name, file string, replace bool) (operations.View, error) {
	if err := MayWrite(file, replace); err != nil {
		return operations.View{}, fmt.Errorf("export %q to %q: %w", name, file, err)
	}
	return im.begin("export", name, func(ctx context.Context, op *operations.Operation) error {
		k, err := im.target(ctx, op, name, true, func(i Image, chunk int64) int64 { return min(i.Size, int64(i.Chunks)*chunk) })
		if err != nil {
			return err
		}
		err = Beside(file, replace, func(f *os.File) error {
			return im.exportTo(ctx, *k.Head, f, func(n int64) { op.Update(func(v *operations.View) { v.Done = n }) })
		})
		if err != nil {
			return fmt.Errorf("export %q to %s: %w", name, file, err)
		}
		return nil
	})
}

// MayWrite fails for a file of this host that an export must leave as it is: ErrExists
// unless it is to be replaced.
func MayWrite(file string, replace bool) error {
	if !filepath.IsAbs(file) {
		return fmt.Errorf("%w: want an absolute path", content.ErrInvalid)
	}
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", content.ErrInvalid, bare(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: it is no file that could be replaced", content.ErrInvalid)
	case !replace:
		return fmt.Errorf("%w; give --force to replace it", content.ErrExists)
	}
	return nil
}

// Beside lets fill write a file that then takes the place of the one that is meant, if
// MayWrite allows. Errors don't name the first, which nobody knows.
func Beside(file string, replace bool, fill func(*os.File) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".export-*")
	if err != nil {
		return bare(err)
	}
	err = errors.Join(fill(tmp), tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = MayWrite(file, replace) // it may have come meanwhile
	}
	if err == nil {
		err = bare(os.Rename(tmp.Name(), file))
	}
	if err == nil {
		return nil
	}
	var of *fs.PathError
	if errors.As(err, &of) && of.Path == tmp.Name() {
		err = of.Err
	}
	return errors.Join(err, os.Remove(tmp.Name()))
}

// bare is what the system said of a file, without the path: the text around names the
// one that was meant.
func bare(err error) error {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number
	}
	return err
}

func (im *Images) exportTo(ctx context.Context, head pack.Head, f *os.File, progress func(int64)) error {
	m, err := im.cfg.Fetcher.Open(fetch.Root{Head: head})
	if err != nil {
		return err
	}
	return convert.Export(ctx, m, f, progress)
}

// Verify reads an image at the origin as its readers would, in the background: each
// object of its own map at its own place. It fails with the first that is not what the
// map says, and the number of all.
func (im *Images) Verify(name string) (operations.View, error) {
	return im.begin("verify", name, func(ctx context.Context, op *operations.Operation) error {
		store := im.cfg.Readable()
		if store == nil {
			return fmt.Errorf("verify %q: %w: the origin does not answer", name, content.ErrUnavailable)
		}
		k, err := im.target(ctx, op, name, true, func(i Image, _ int64) int64 { return int64(i.Stored) })
		if err != nil {
			return err
		}
		report, err := verify.Image(ctx, pack.NewReader(store), *k.Head, func(r verify.Report) {
			op.Update(func(v *operations.View) {
				v.Done, v.Bytes["verified"] = min(int64(r.StoredBytes), v.Total), int64(r.StoredBytes)
				v.Note = fmt.Sprintf("%d chunks and %d map nodes are well, %d damaged, %d missing", r.Chunks, r.Nodes, r.Bad, r.Missing)
			})
		})
		im.cfg.Suspect(ctx, report.Suspect...)
		if err = errors.Join(err, report.Err()); err != nil {
			return fmt.Errorf("verify %q: %w", name, err)
		}
		op.Update(func(v *operations.View) {
			v.Done, v.Note = v.Total, fmt.Sprintf("all is well at the origin: %d chunks and %d map nodes were read", report.Chunks, report.Nodes)
		})
		return nil
	})
}
