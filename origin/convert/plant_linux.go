package convert

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert/files"
)

// Files is a directory or tar file that is to become a tree.
type Files struct {
	o      Options
	source *source // of a tar file
	sorted *files.Sorted
}

// OpenFiles opens a source as files. The caller closes it, which removes what was unpacked. One that is neither a
// directory nor a tar file is ErrInvalid.
func OpenFiles(ctx context.Context, o Options) (*Files, error) {
	o, err := o.found()
	if err != nil {
		return nil, err
	}
	f := &Files{o: o}
	if o.Format != Dir {
		err = f.openTar(ctx)
	} else if os.Geteuid() != 0 {
		o.Warn("attributes in trusted.*, which root alone sees, are not in it")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open source %s as files: %w", o.Path, err), f.Close())
	}
	return f, nil
}

func (f *Files) openTar(ctx context.Context) error {
	s, err := openSource(f.o.Path)
	if err != nil {
		return err
	}
	if f.source, err = f.o.inflated(ctx, s); err != nil {
		return err
	}
	is, err := detect(f.source)
	if err != nil && !errors.Is(err, content.ErrInvalid) {
		return err
	}
	if err != nil || is != Tar || f.o.Format != Auto && f.o.Format != Tar {
		return fmt.Errorf("%w: a tree is made of a directory or a tar file", content.ErrInvalid)
	}
	if _, err := contents(f.source, true); err != nil {
		return err
	}
	f.o.Format, f.o.Path = Tar, f.source.file.Name()
	f.o.Note("sorting what is in the tar file")
	f.sorted, err = files.Sort(ctx, f.o.listing(), f.o.Temp, f.o.Room)
	return err
}

// Close removes the working files.
func (f *Files) Close() (err error) {
	if f.sorted != nil {
		err = f.sorted.Close()
	}
	if f.source != nil {
		err = errors.Join(err, f.source.Close())
	}
	return err
}

// settled is how long a file must not have changed before a tree is read for its stamp to tell later changes: file
// systems count time in ticks, of which some take two seconds.
const settled = 2 * time.Second

// Plant writes the tree, and closes w. Options.Warn is told what can't be had of it. Files of a directory have stamps, see
// tree.Writer.
func (f *Files) Plant(ctx context.Context, w *tree.Writer) (tree.Sums, error) {
	p, l, err := f.plant(ctx, w, time.Now())
	if err == nil && f.source != nil {
		err = f.source.unchanged()
	} else if err == nil {
		err = f.o.compare(ctx, l, p.facts)
	}
	if err != nil {
		return tree.Sums{}, err
	}
	for _, text := range p.lost.texts() {
		f.o.Warn(text)
	}
	return w.Close(ctx)
}

// Learn is Plant for what w notes alone, beside somebody who changes the files: a stamp is of what a file had before it was
// read, and never another's. A file that is mapped has a new time at the first change of a page that is on disk alone:
// what has not changed since it began has all of its pages there before it is read. Where no disk is below, nothing is learnt.
func (f *Files) Learn(ctx context.Context, w *tree.Writer) error {
	began := time.Now()
	err := syncAll(f.o.Path)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err == nil {
		_, _, err = f.plant(ctx, w, began)
	}
	if err == nil {
		_, err = w.Close(ctx)
	}
	return err
}

// syncAll has all of the file system on disk that a folder is on; ErrUnsupported is for one in memory, as what an overlay lies
// on may be: a page there stays as it was mapped, and tells of its first change alone.
func syncAll(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return os.NewSyscallError("statfs", err)
	}
	if slices.Contains([]int64{unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC}, int64(fs.Type)) {
		return errors.ErrUnsupported
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(d.Fd()))), d.Close())
}

// plant writes the tree; files that have changed shortly before it began have no stamps.
func (f *Files) plant(ctx context.Context, w *tree.Writer, began time.Time) (p planter, l files.Listing, err error) {
	if l = f.sorted; f.sorted == nil {
		l = f.o.listing()
	}
	p = planter{w: w, facts: map[string]fact{}, lost: losses{}, settled: began.Add(-settled).UnixNano()}
	err = l.Each(ctx, func(e *files.Entry) error { return p.put(ctx, e) })
	for range p.open {
		if err == nil {
			err = w.Leave()
		}
	}
	return p, l, err
}

// planter hands entries on to a tree's writer.
type planter struct {
	w     *tree.Writer
	open  []string // folders that were entered
	facts map[string]fact
	lost  losses
	// settled is before which a file has to have changed last, in nanoseconds since 1970.
	settled int64
}

// stampOf is which file it is, and when that was changed last, in its data and otherwise; nil where it may be changed again
// without another one. Without the number two of one name and size that were written together would have one.
func (p *planter) stampOf(e *files.Entry) []byte {
	if e.Stamp == 0 || e.Stamp >= p.settled {
		return nil
	}
	return StampOf(e.Inode, e.Stamp, e.Mtime.Nano())
}

// StampOf is the stamp of a file with that inode, which was changed last then, in its data and otherwise; in nanoseconds since
// 1970.
func StampOf(inode uint64, changed, modified int64) (stamp []byte) {
	for _, part := range []uint64{inode, uint64(changed), uint64(modified)} {
		stamp = binary.BigEndian.AppendUint64(stamp, part)
	}
	return stamp
}

func (p *planter) put(ctx context.Context, e *files.Entry) error {
	if p.facts[e.Path] = (fact{e.Is(unix.S_IFDIR), e.Stamp}); len(p.facts) > filesMax {
		return fmt.Errorf("%w: more than %d files and folders; import parts of the tree", content.ErrInvalid, filesMax)
	}
	for len(p.open) > 0 && p.open[len(p.open)-1] != path.Dir(e.Path) {
		p.open = p.open[:len(p.open)-1]
		if err := p.w.Leave(); err != nil {
			return err
		}
	}
	if len(p.open) == 0 && e.Path != "." {
		return fmt.Errorf("%w: %q is in what is no folder of the tree", content.ErrInvalid, e.Path)
	}
	if e.Lost != "" {
		p.lost.add(e.Lost, e.Path)
	}
	planted, data := plantedOf(e), tree.Data(e.Data)
	if e.Is(unix.S_IFDIR) {
		p.open = append(p.open, e.Path)
		return p.w.Enter(planted)
	}
	if e.Same != "" {
		data = nil
	}
	if err := p.w.Add(ctx, planted, p.stampOf(e), data); err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	return nil
}

func plantedOf(e *files.Entry) tree.Entry {
	out := tree.Entry{Mode: e.Mode, UID: uint32(e.UID), GID: uint32(e.GID), Seconds: e.Mtime.Sec, Nanos: uint32(e.Mtime.Nsec), Same: []byte(e.Same), Links: uint32(e.Links)}
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
