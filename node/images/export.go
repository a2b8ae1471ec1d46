package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/grangemesh/grange/node/cache"
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
	if err := im.MayWrite(file, replace); err != nil {
		return operations.View{}, fmt.Errorf("export %q to %q: %w", name, file, err)
	}
	return im.begin("export", name, func(ctx context.Context, op *operations.Operation) error {
		k, err := im.target(ctx, op, name, func(i Image, chunk int64) int64 { return min(i.Size, int64(i.Chunks)*chunk) })
		if err == nil {
			err = isDisk(k)
		}
		if err != nil {
			return err
		}
		err = im.Beside(file, replace, func(f *os.File) error {
			return im.exportTo(ctx, *k.Head, f, func(n int64) { op.Update(func(v *operations.View) { v.Done = n }) })
		})
		if err != nil {
			return fmt.Errorf("export %q to %s: %w", name, file, err)
		}
		return nil
	})
}

// MayWrite fails for a file of this host that an export must leave as it is: ErrExists unless it is to be
// replaced, and what is there of this node's data in any case.
func (im *Images) MayWrite(file string, replace bool) error {
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
	case im.isOwn(file):
		return fmt.Errorf("%w: it is one of the files of this node's own data folder", content.ErrInvalid)
	}
	return nil
}

// isOwn reports whether a file lies in the node's data folder, by whatever path.
func (im *Images) isOwn(file string) bool {
	own, err := filepath.EvalSymlinks(im.cfg.Dir)
	in, failed := filepath.EvalSymlinks(filepath.Dir(file))
	if err != nil || failed != nil {
		return true // it can't be told
	}
	return within(in, own)
}

// Beside lets fill write a file that then takes the place of the one that is meant, if
// MayWrite allows. Errors don't name the first, which nobody knows.
func (im *Images) Beside(file string, replace bool, fill func(*os.File) error) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".export-*")
	if err != nil {
		return bare(err)
	}
	err = errors.Join(fill(tmp), tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = im.MayWrite(file, replace) // it may have come meanwhile
	}
	if err == nil {
		err = bare(os.Rename(tmp.Name(), file))
	}
	if err == nil {
		return nil
	}
	if of, ok := errors.AsType[*fs.PathError](err); ok && of.Path == tmp.Name() {
		err = of.Err
	}
	return errors.Join(err, os.Remove(tmp.Name()))
}

// bare is what the system said of a file, without the path: the text around names the
// one that was meant.
func bare(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
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
		k, err := im.target(ctx, op, name, func(i Image, _ int64) int64 { return int64(i.Stored) })
		if err != nil {
			return err
		}
		report, err := verify.Config{Reader: pack.NewReader(store), Progress: func(r verify.Report) {
			op.Update(func(v *operations.View) {
				v.Done, v.Bytes["verified"] = min(int64(r.StoredBytes), v.Total), int64(r.StoredBytes)
				v.Note = fmt.Sprintf("%d chunks and %d map nodes are well, %d damaged, %d missing", r.Chunks, r.Nodes, r.Bad, r.Missing)
			})
		}}.Image(ctx, *k.Head)
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

const (
	// TempDir in the data folder holds files of work that is under way; a start clears
	// it.
	TempDir = "tmp"
	// workingShare of a disk, one part in so many, and no more than workingMax bytes,
	// stay free of working files: that is the volumes', whose guests write meanwhile.
	// It is half of what the cache leaves free, and the cache gives way.
	workingShare = 40
	workingMax   = 16 << 30
	// workingLook is how often the room is looked at: what a disk writes meanwhile is
	// far less than what is left.
	workingLook = 250 * time.Millisecond
)

// working is the folder of files that imports need for a while. They have what is
// free there but for the volumes' part.
type working struct {
	dir  string
	free func(dir string) (free, total uint64, err error)
}

// WorkingRoom returns what fails when about n bytes more for working files in dir are
// not to be had.
func WorkingRoom(dir string) func(n int64) error { return workingIn(dir).room }

func workingIn(dir string) working { return working{dir, cache.DiskFree} }

// room fails when about n bytes more are not to be had.
func (w working) room(n int64) error {
	free, total, err := w.free(w.dir)
	if err != nil {
		return fmt.Errorf("working files in %s: %w", w.dir, err)
	}
	reserve := min(total/workingShare, workingMax)
	if free >= reserve+uint64(n) {
		return nil
	}
	return fmt.Errorf("%w for working files in %s: %s are needed beside the %s that are left to volumes, and %s are free; make room there, or import on another node",
		content.ErrNoSpace, w.dir, humanize.IBytes(uint64(n)), humanize.IBytes(reserve), humanize.IBytes(free))
}

// guard ends ctx when the room ran out, whoever took it. Stop ends the guard alone: what
// was begun with the context, as a child that reads a disk, goes on.
func (w working) guard(ctx context.Context) (guarded context.Context, stop func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	enough, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.Tick(workingLook)
		for {
			select {
			case <-guarded.Done():
				return
			case <-enough:
				return
			case <-tick:
				if err := w.room(0); err != nil {
					cancel(err)
				}
			}
		}
	}()
	return guarded, func() {
		close(enough)
		<-ended
	}
}
