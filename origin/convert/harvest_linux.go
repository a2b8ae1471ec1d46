package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert/files"
)

// depthMax bounds the folders within folders of a tree that is written out: Linux takes no longer paths.
const depthMax = unix.PathMax / 2

const (
	// writersMax files are written at once: each mostly waits, for chunks that come or for the disk; and each takes 2 MiB.
	writersMax = 8
	// smallMax is the size of files that hold nothing up, in bytes: most that programs have open are not larger.
	smallMax = 4 << 20
)

// Harvest writes a tree into a folder that is there: what is in it and not in the tree goes, what is alike stays.
// Several files are written at once, and those first that programs begin with: what may be executed, and what is small.
// warn is told what can't be written.
func Harvest(ctx context.Context, t *tree.Tree, dir string, warn func(string)) error {
	lost, facts := losses{}, map[string]bool{} // what is a folder
	place, err := placeAt(dir, lost.add)
	if err != nil {
		return err
	}
	l := planted{t}
	err = l.each(ctx, ".", l.Top(), func(p string, f tree.File) error {
		if folder, given := facts[string(f.Same)]; len(f.Same) > 0 && (!given || folder) {
			return fmt.Errorf("%w: %.100q is another name of %.100q, which is no file that comes before it", content.ErrCorrupt, p, f.Same)
		}
		facts[p] = f.Is(tree.Folder)
		return nil
	})
	if err == nil {
		err = place.Prune(func(path string, folder bool) bool { is, ok := facts[path]; return ok && is == folder })
	}
	for turn := frame; turn <= names && err == nil; turn++ {
		err = l.write(ctx, place, turn)
	}
	if err = errors.Join(err, place.Close()); errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: %w", content.ErrNoSpace, err)
	}
	for _, text := range lost.texts() {
		warn(text)
	}
	return err
}

// HarvestTop makes a folder what the top of a tree is, but for what is in that.
func HarvestTop(ctx context.Context, t *tree.Tree, dir string) error {
	place, err := placeAt(dir, func(string, string) {})
	if err != nil {
		return err
	}
	return errors.Join(place.Put(ctx, planted{t}.entry(ctx, ".", t.Top(), nil)), place.Close())
}

func placeAt(dir string, lost func(what, path string)) (*files.Place, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	return files.NewPlace(fd, lost)
}

// turn is when something is written: what files lie in before them, and their other names behind.
type turn int

const (
	frame turn = iota // folders, links and devices
	hot
	cold
	names
)

func turnOf(f *tree.File) turn {
	switch {
	case len(f.Same) > 0:
		return names
	case !f.Is(tree.Regular):
		return frame
	case f.Mode&0o111 != 0 || f.Size <= smallMax:
		return hot
	}
	return cold
}

// planted lists what is in a tree.
type planted struct{ *tree.Tree }

// found is something of a tree, and its path.
type found struct {
	path string
	file tree.File
}

// write puts what has a turn into its place.
func (l planted) write(ctx context.Context, place *files.Place, now turn) error {
	each := func(ctx context.Context, do func(string, tree.File) error) error {
		return l.each(ctx, ".", l.Top(), func(p string, f tree.File) error {
			if turnOf(&f) != now {
				return nil
			}
			return do(p, f)
		})
	}
	if now != hot && now != cold {
		return each(ctx, func(p string, f tree.File) error { return place.Put(ctx, l.entry(ctx, p, f, nil)) })
	}
	group, ctx := errgroup.WithContext(ctx)
	todo := make(chan found)
	for range writersMax {
		group.Go(func() error {
			beside, buf := place.Beside(), make([]byte, files.ReadAtOnce)
			defer beside.Leave()
			for it := range todo {
				if err := beside.Put(ctx, l.entry(ctx, it.path, it.file, buf)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(todo)
		return each(ctx, func(p string, f tree.File) error {
			select {
			case todo <- found{p, f}:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	return group.Wait()
}

func (l planted) each(ctx context.Context, p string, f tree.File, do func(string, tree.File) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(p) > depthMax {
		return fmt.Errorf("%w: %.100q… is a longer path than may be written", content.ErrInvalid, p)
	}
	if err := do(p, f); err != nil || !f.Is(tree.Folder) {
		return err
	}
	in, err := l.List(ctx, f)
	for i := range in {
		if err == nil {
			err = l.each(ctx, path.Join(p, string(in[i].Name)), in[i], do)
		}
	}
	return err
}

func (l planted) entry(ctx context.Context, p string, f tree.File, buf []byte) *files.Entry {
	e := &files.Entry{
		Path: p, Mode: f.Mode, UID: int(f.UID), GID: int(f.GID), Mtime: unix.Timespec{Sec: f.Seconds, Nsec: int64(f.Nanos)},
		Device: f.Device, Target: string(f.Target), Same: string(f.Same), Size: f.Size, Xattrs: map[string]string{},
	}
	for _, x := range f.Xattrs {
		e.Xattrs[string(x.Name)] = string(x.Value)
	}
	if f.Is(tree.Regular) && e.Same == "" {
		e.Data = func(yield func([]byte, int64) error) error { return l.data(ctx, f, buf, yield) }
	}
	return e
}

// data gives what is in a file, but for its holes.
func (l planted) data(ctx context.Context, f tree.File, buf []byte, yield func([]byte, int64) error) error {
	for _, r := range f.Parts() {
		for off, left := r.Off, r.Length; left > 0; {
			p := buf[:min(int64(len(buf)), left)]
			if _, err := l.ReadAt(ctx, f, p, off); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if err := files.NotZero(p, off, yield); err != nil { // small files have their holes as zeros
				return err
			}
			off, left = off+int64(len(p)), left-int64(len(p))
		}
	}
	return nil
}
