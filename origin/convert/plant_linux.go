package convert

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert/files"
)

// Plant writes the tree of a directory or tar file. Warn is told what can't be had of it. It closes w.
func (o Options) Plant(ctx context.Context, w *tree.Writer) (tree.Sums, error) {
	l := o.listing()
	if o.Format == Tar {
		sorted, err := files.Sort(ctx, l, o.Temp, o.Room)
		if err != nil {
			return tree.Sums{}, err
		}
		defer sorted.Close()
		l = sorted
	}
	var open []string // folders that were entered
	err := l.Each(ctx, func(e *files.Entry) error {
		for len(open) > 0 && open[len(open)-1] != path.Dir(e.Path) && e.Path != "." {
			open = open[:len(open)-1]
			if err := w.Leave(); err != nil {
				return err
			}
		}
		if len(open) == 0 && e.Path != "." {
			return fmt.Errorf("%w: %q is in what is no folder of the tree", content.ErrInvalid, e.Path)
		}
		if e.Lost != "" {
			o.Warn(fmt.Sprintf("%s: %s", e.Path, e.Lost))
		}
		planted := plantedOf(e)
		if e.Is(unix.S_IFDIR) {
			open = append(open, e.Path)
			return w.Enter(planted)
		}
		data := tree.Data(e.Data)
		if e.Same != "" {
			data = nil
		}
		if err := w.Add(ctx, planted, data); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		return nil
	})
	for range open {
		if err == nil {
			err = w.Leave()
		}
	}
	if err != nil {
		return tree.Sums{}, err
	}
	return w.Close(ctx)
}

func plantedOf(e *files.Entry) tree.Entry {
	out := tree.Entry{Mode: e.Mode, UID: uint32(e.UID), GID: uint32(e.GID), Seconds: e.Mtime.Sec, Nanos: uint32(e.Mtime.Nsec), Same: []byte(e.Same)}
	if e.Path != "." {
		out.Name = []byte(path.Base(e.Path))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		out.Xattrs = append(out.Xattrs, tree.Xattr{Name: []byte(name), Value: []byte(e.Xattrs[name])})
	}
	switch {
	case e.Same != "":
	case e.Is(unix.S_IFREG):
		out.Size = e.Size
	case e.Is(unix.S_IFLNK):
		out.Target = []byte(e.Target)
	case e.Is(unix.S_IFCHR), e.Is(unix.S_IFBLK):
		out.Device = e.Device
	}
	return out
}
