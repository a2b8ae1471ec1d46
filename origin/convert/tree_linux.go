package convert

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
)

const (
	// A fitted file system has half as much free space and as many free inodes again as
	// its files take, for what a guest writes first, and at least the minimum.
	fittedMin   = 256 << 20
	fittedRound = 64 << 20
	// It has an inode for so many bytes, or more: twice as many as mke2fs makes by
	// itself, for guests of small files.
	bytesPerInode = 8 << 10
	inodeSize     = 256
	// xattrsInside an inode need no block of their own, in bytes.
	xattrsInside = 64
	// linkInside an inode is a symbolic link's target up to so many bytes.
	linkInside = 59
	// nameSize is what a name takes in its folder beside itself, in bytes; folders are half full, at worst.
	nameSize = 16
	// overheadMax is what a file system of fittedMin needs for its journal and
	// descriptors, in bytes; and overheadShare of a larger one, one in so many.
	overheadMax   = 32 << 20
	overheadShare = 32
	// filesMax bounds the files of a tree, of which each takes some 150 bytes of memory
	// while it is imported, though a tar may only imply it.
	filesMax = 2 << 20
	// timeMin and timeMax are the first and the last second that an inode's times have.
	timeMin, timeMax = math.MinInt32, 1<<34 - 1 + math.MinInt32
	// toldMax bounds how many files of a kind a warning names, kindsMax and kindSize the
	// kinds and their texts in bytes, in which a source may have a hand.
	toldMax  = 3
	kindsMax = 100
	kindSize = 300
)

// fact is what is remembered of an entry while the tree is written.
type fact struct {
	folder bool
	stamp  int64
}

// needs is what a tree takes.
type needs struct {
	facts map[string]fact
	bytes int64
	lost  losses
}

// writer writes a file system.
type writer interface {
	// prune removes what is not among the facts.
	prune(facts map[string]fact) error
	// put makes the entry what it should be.
	put(ctx context.Context, e *files.Entry) error
	// close ends the writing. It may be called again.
	close(ctx context.Context) error
}

// tree makes an ext4 disk of a directory or tar file: afresh, or in a copy of the previous disk. Either way
// the same code compares each entry with what is there, so the files are the same; where no file system can
// be mounted, it is written by debugfs, always afresh.
func (o Options) tree(ctx context.Context) (Disk, error) {
	path, err := filepath.EvalSymlinks(o.Path)
	if err != nil {
		return nil, err
	}
	o.Path = path
	f, err := os.CreateTemp(o.Temp, "tree-*.ext4")
	if err != nil {
		return nil, err
	}
	err = o.fill(ctx, f, mountable())
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		err = fmt.Errorf("%w; let the node's user read it, or run the node as root", err)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	s, err := openWorking(f.Name())
	if err != nil {
		return nil, err
	}
	return Tree{rawDisk{s}}, nil
}

// fill writes the tree into f; unable says why nothing can be mounted.
func (o Options) fill(ctx context.Context, f *os.File, unable error) error {
	o.Note("looking at what is in the tree")
	src := o.listing()
	n, err := measure(ctx, src)
	if err != nil {
		return err
	}
	if o.Format == Dir && os.Geteuid() != 0 {
		o.Warn("attributes in trusted.*, which root alone sees, are not in it")
	}
	kept, err := o.keep(ctx, f, unable)
	if err != nil {
		return err
	}
	if kept {
		err = o.revise(ctx, n, f)
	} else {
		err = o.create(ctx, n, f, unable != nil)
	}
	if err != nil {
		return err
	}
	w, err := o.writer(ctx, f, unable, n.lost)
	if err != nil {
		return err
	}
	o.Note("writing the files")
	if kept {
		err = w.prune(n.facts)
	}
	if err == nil {
		err = src.Each(ctx, func(e *files.Entry) error {
			e.Mtime, _ = bounded(e.Mtime)
			return w.put(ctx, e)
		})
	}
	if err = errors.Join(err, w.close(ctx)); errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: the files do not fit; give a larger --size: %w", content.ErrNoSpace, err)
	}
	if err != nil {
		return err
	}
	if err := o.compare(ctx, src, n.facts); err != nil {
		return err
	}
	for _, text := range n.lost.texts() {
		o.Warn(text)
	}
	return finish(ctx, f, unable != nil)
}

func (o Options) writer(ctx context.Context, f *os.File, unable error, lost losses) (writer, error) {
	if unable == nil {
		return mount(ctx, f, lost)
	}
	return startDebugfs(ctx, f.Name(), o.Temp, lost)
}

// keep brings the previous disk into f, where there is one that can be written into. Without the right to
// mount there is none: what did not change then has other places in the new disk, and is sent again.
func (o Options) keep(ctx context.Context, f *os.File, unable error) (bool, error) {
	switch {
	case o.Previous == nil:
		return false, nil
	case unable != nil:
		o.Warn(fmt.Sprintf("made afresh, so that more is sent than has changed: the previous version can't be mounted (%v); it needs a node that runs as root", unable))
		return false, nil
	}
	o.Note("copying the previous version")
	if err := o.Previous(ctx, f); err != nil {
		return false, fmt.Errorf("copy the previous version: %w", err)
	}
	return true, nil
}

// measure looks at the whole of a source once, and finds out whether it is whole.
func measure(ctx context.Context, src files.Listing) (needs, error) {
	n := needs{facts: map[string]fact{}, lost: losses{}}
	err := src.Each(ctx, func(e *files.Entry) error {
		if n.facts[e.Path] = (fact{e.Is(unix.S_IFDIR), e.Stamp}); len(n.facts) > filesMax {
			return fmt.Errorf("%w: more than %d files and folders; import parts of the tree, or a disk that holds it", content.ErrInvalid, filesMax)
		}
		if e.Lost != "" {
			n.lost.add(e.Lost, e.Path)
		}
		if _, ok := bounded(e.Mtime); !ok {
			n.lost.add("its time is one that ext4 does not have: it has the next that there is", e.Path)
		}
		n.bytes += int64(2 * (nameSize + len(filepath.Base(e.Path))))
		switch {
		case e.Same != "":
			return nil
		case e.Is(unix.S_IFDIR), e.Is(unix.S_IFLNK) && len(e.Target) > linkInside:
			n.bytes += files.Block
		}
		inside := 0
		for name, value := range e.Xattrs {
			inside += len(name) + len(value)
		}
		if inside > xattrsInside {
			n.bytes += files.Block
		}
		held, err := e.Bytes()
		n.bytes += (held + files.Block - 1) / files.Block * files.Block
		return err
	})
	return n, err
}

func bounded(t unix.Timespec) (unix.Timespec, bool) {
	if t.Sec >= timeMin && t.Sec <= timeMax {
		return t, true
	}
	return unix.Timespec{Sec: min(max(t.Sec, timeMin), timeMax)}, false
}

// inodes that the tree takes, and half as many for the guest.
func (n needs) inodes() int64 { return int64(len(n.facts)) + int64(len(n.facts))/2 }

// fitted returns a size that holds the tree with room to spare. No file system has more inodes than blocks.
func (n needs) fitted() int64 {
	size := max(n.bytes+n.bytes/2+n.inodes()*inodeSize, n.inodes()*files.Block, fittedMin)
	return (size + fittedRound - 1) / fittedRound * fittedRound
}

func (n needs) fits(size int64) bool {
	return n.bytes+int64(len(n.facts))*inodeSize+max(min(size/8, overheadMax), size/overheadShare) <= size
}

// create makes an empty file system. It gets its journal when it is full: what passes through a journal would
// be sent with it. debugfs is twice as fast without checksums, which then come with the journal.
func (o Options) create(ctx context.Context, n needs, f *os.File, plain bool) error {
	size := o.Size
	if size == 0 {
		size = n.fitted()
	}
	if err := checkSize(size); err != nil {
		return err
	}
	if !n.fits(size) || size/files.Block < int64(len(n.facts)) {
		return fmt.Errorf("%w: %d files with %d bytes do not fit into --size %d; it would be %d by itself", content.ErrInvalid, len(n.facts), n.bytes, size, n.fitted())
	}
	if err := errors.Join(o.Room(n.bytes+n.inodes()*inodeSize), f.Truncate(size)); err != nil {
		return err
	}
	features := "^has_journal"
	if plain {
		features += ",^metadata_csum"
	}
	inodes := min(max(n.inodes(), size/bytesPerInode), size/files.Block)
	return run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(files.Block), "-I", strconv.Itoa(inodeSize), "-N", strconv.FormatInt(inodes, 10),
		"-O", features, "-E", "root_owner=0:0", f.Name())
}

// revise makes the previous file system, which finish has checked, ready: without its
// journal, and large enough. It never shrinks.
func (o Options) revise(ctx context.Context, n needs, f *os.File) error {
	if err := run(ctx, "tune2fs", "-O", "^has_journal", f.Name()); err != nil {
		return err
	}
	super := make([]byte, 64)
	info, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(super, 1024)
	}
	if err != nil {
		return err
	}
	field := func(at int) int64 { return int64(binary.LittleEndian.Uint32(super[at:])) }
	perGroup, group := field(40), field(32)*(1<<10)<<field(24) // inodes, bytes
	size := info.Size()
	switch {
	case o.Size != 0 && o.Size < size:
		return fmt.Errorf("%w: --size %d is smaller than the previous version, %d", content.ErrConflict, o.Size, size)
	case o.Size != 0:
		size = o.Size
	case !n.fits(size) || field(0) < int64(len(n.facts))+field(0)/16:
		size = max(size, n.fitted(), (n.inodes()+perGroup-1)/perGroup*group)
	}
	if err := checkSize(size); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if err := o.Room(max(0, n.bytes-st.Blocks*512)); err != nil || size == info.Size() {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	return run(ctx, "resize2fs", f.Name(), strconv.FormatInt(size/1024, 10)+"K")
}

// corrected is how e2fsck ends when it has mended what it found.
const corrected = 1

func check(ctx context.Context, f *os.File, how ...string) error {
	err := run(ctx, "e2fsck", append(append([]string{"-f"}, how...), f.Name())...)
	if ended, ok := errors.AsType[*exec.ExitError](err); ok && ended.ExitCode() == corrected {
		return nil
	}
	return err
}

// finish checks what was written, gives what is free back to the host, and makes
// the journal, of zeros. What debugfs wrote lacks counts and indexes.
func finish(ctx context.Context, f *os.File, plain bool) error {
	var err error
	if plain {
		err = check(ctx, f, "-y", "-D")
		if err == nil {
			err = run(ctx, "tune2fs", "-O", "metadata_csum", f.Name())
		}
	} else {
		err = check(ctx, f, "-p", "-E", "discard")
	}
	if err != nil {
		return err
	}
	return run(ctx, "tune2fs", "-j", f.Name())
}

// compare says what has changed while the tree was written.
func (o Options) compare(ctx context.Context, src files.Listing, facts map[string]fact) error {
	if o.Format != Dir {
		return nil
	}
	lost, seen := losses{}, 0
	err := src.Each(ctx, func(e *files.Entry) error {
		if f, ok := facts[e.Path]; !ok || f.stamp != e.Stamp {
			lost.add("changed while the tree was read; import it when it is at rest, or a snapshot of it", e.Path)
		}
		seen++
		return nil
	})
	if gone := len(facts) - seen; err == nil && gone > 0 {
		lost.add("fewer at the end than at the beginning", strconv.Itoa(gone))
	}
	for _, text := range lost.texts() {
		o.Warn(text)
	}
	return err
}

// losses are what is not as in the source, by kind.
type losses map[string]*loss

// loss is of one kind: some names, and how many there are more.
type loss struct {
	names []string
	more  int
}

func (l losses) add(kind, name string) {
	kind = strings.ToValidUTF8(kind[:min(len(kind), kindSize)], "")
	if l[kind] == nil && len(l) >= kindsMax {
		kind = "more is lost"
	}
	if l[kind] == nil {
		l[kind] = &loss{}
	}
	if its := l[kind]; len(its.names) < toldMax {
		its.names = append(its.names, name)
	} else {
		its.more++
	}
}

func (l losses) texts() []string {
	var out []string
	for kind, its := range l {
		told := strings.Join(its.names, ", ")
		if its.more > 0 {
			told += fmt.Sprintf(" and %d more", its.more)
		}
		out = append(out, told+": "+kind)
	}
	slices.Sort(out)
	return out
}

func (o Options) listing() files.Listing {
	if o.Format == Tar {
		return files.Archive(o.Path)
	}
	return files.Folder{Root: o.Path, Except: o.Except}
}
