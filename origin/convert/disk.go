package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
	"github.com/grangemesh/grange/origin/convert/foreign"
)

// Disk is a disk to be published. ReadAt fills all of p inside Size, or fails.
type Disk interface {
	io.ReaderAt
	io.Closer
	// Size in bytes.
	Size() int64
	// NextData returns the first range at or after off that may hold anything but zeros; io.EOF when there is
	// none. One whose source was written to since it was opened ends with ErrConflict instead.
	NextData(off int64) (start, end int64, err error)
}

// Format names what a source is.
type Format string

// The formats. Auto looks at the source, and takes it for Raw when nothing speaks
// against that; Raw insists. All but Raw and Dir may be compressed.
const (
	Auto      Format = "auto"
	Raw       Format = "raw"
	QCOW      Format = "qcow"
	QCOW2     Format = "qcow2"
	QED       Format = "qed"
	VMDK      Format = "vmdk"
	VHDX      Format = "vhdx"
	VDI       Format = "vdi"
	VPC       Format = "vpc" // files of this one are called .vhd
	Parallels Format = "parallels"
	Tar       Format = "tar"
	Dir       Format = "dir"
	OCI       Format = "oci" // an archive of a container image
)

// Options says what to open. Who asks for an import says the first three, and who does it the others.
type Options struct {
	Path   string `json:"source" doc:"path on the node's host of a disk, a tar file or a directory" example:"/srv/debian.qcow2"`
	Format Format `json:"format,omitempty" enum:"auto,raw,qcow,qcow2,qed,vmdk,vhdx,vdi,vpc,parallels,tar,dir,oci" doc:"auto when not given"`
	Size   int64  `json:"size,omitempty" minimum:"0" doc:"bytes of the file system that a directory or tar file is put into; fitted when not given"`
	// Platform is which of a container image's, as linux/arm64; the host's when not given.
	Platform string `json:"platform,omitempty" doc:"of a container image: OS/ARCHITECTURE[/VARIANT]; this host's when not given" example:"linux/arm64"`
	// Temp is a folder for the working files of what is compressed, of Tar and of Dir;
	// they may take as much as the disk's data.
	Temp string `json:"-"`
	// Previous writes the disk that this one replaces into a sparse file, which a
	// directory or tar file then updates in place; nil when there is none. The host's
	// kernel mounts it, so it must have been made as a Tree, by someone trusted.
	Previous func(context.Context, *os.File) error `json:"-"`
	// Except is a folder that is left out of a directory that holds it: the node's own.
	Except string `json:"-"`
	// Room is asked before about n bytes are written to Temp; its error ends the work. May be nil.
	Room func(n int64) error `json:"-"`
	// Note is told what is being done, for people; may be nil.
	Note func(string) `json:"-"`
	// Warn is told what of the source is not in the disk, or may not be as it was; may be nil.
	Warn func(string) `json:"-"`
}

// Open opens a source as a disk. The caller closes it, which removes what was unpacked. Sources that can't be
// a disk are ErrInvalid, those that something writes to ErrConflict.
func Open(ctx context.Context, o Options) (Disk, error) {
	o, err := o.found()
	if err != nil {
		return nil, err
	}
	var d Disk
	if o.Format == Dir {
		d, err = o.tree(ctx)
	} else {
		d, err = o.file(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open source %s as %s: %w", o.Path, o.Format, err)
	}
	if err := checkSize(d.Size()); err != nil {
		return nil, errors.Join(fmt.Errorf("open source %s: %w", o.Path, err), d.Close())
	}
	return d, nil
}

// found is the options with all that may be left out, of a source that is there.
func (o Options) found() (Options, error) {
	o.Format = cmp.Or(o.Format, Auto)
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.Room == nil {
		o.Room = func(int64) error { return nil }
	}
	path, err := filepath.Abs(o.Path) // in a relative one tools take what is before a colon for a host or protocol
	if err != nil {
		return o, fmt.Errorf("open source: %w", err)
	}
	o.Path = path
	info, err := os.Stat(o.Path)
	if err != nil {
		return o, fmt.Errorf("open source: %w", err)
	}
	if info.IsDir() && o.Format == Auto {
		o.Format = Dir
	}
	if info.IsDir() != (o.Format == Dir) {
		return o, fmt.Errorf("open source %s as %s: %w: directories are of format dir, and nothing else is", path, o.Format, content.ErrInvalid)
	}
	return o, nil
}

// file opens a source that is a file or a device, and inflates it first.
func (o Options) file(ctx context.Context) (Disk, error) {
	s, err := openSource(o.Path)
	if err == nil && o.Format != Raw {
		s, err = o.inflated(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	d, err := o.disk(ctx, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return d, nil
}

// disk opens a source by its format; the disk has the source then.
func (o Options) disk(ctx context.Context, s *source) (d Disk, err error) {
	auto := o.Format == Auto
	if auto {
		if o.Format, err = detect(s); err != nil {
			return nil, err
		}
	}
	if o.Format == OCI || o.Format == Tar && auto {
		if image, err := isContainer(s); err != nil {
			return nil, err
		} else if image {
			return o.ofContainer(ctx, s)
		}
	}
	switch o.Format {
	case Raw:
		return rawDisk{s}, nil
	case OCI:
		return nil, fmt.Errorf("%w: it is no archive of a container image", content.ErrInvalid)
	case Tar:
		appliance, err := contents(s, !auto)
		switch {
		case err != nil:
			return nil, err
		case len(appliance) == 0:
			return o.treeOf(ctx, s)
		}
		return o.ofAppliance(ctx, s, appliance)
	case VPC:
		size, err := fixedSize(s)
		if err != nil {
			return nil, err
		}
		if size > 0 {
			s.part(0, size)
			return rawDisk{s}, nil
		}
	case QCOW, QCOW2, QED, VMDK, VHDX, VDI, Parallels:
	default:
		return nil, fmt.Errorf("%w: unknown format %.20q", content.ErrInvalid, o.Format)
	}
	child, err := foreign.Open(ctx, s, string(o.Format), o.Warn)
	if err != nil {
		return nil, fmt.Errorf("a %s disk: %w", o.Format, err)
	}
	return foreignDisk{child, s}, nil
}

// ofAppliance opens the disk that lies in a virtual appliance, in its place.
func (o Options) ofAppliance(ctx context.Context, s *source, appliance []member) (Disk, error) {
	it, err := disk(appliance)
	if err != nil {
		return nil, err
	}
	s.part(it.off, it.size)
	if o.Format, err = detect(s); err != nil {
		return nil, fmt.Errorf("%s: %w", it.name, err)
	}
	if first, err := head(s); err != nil {
		return nil, err
	} else if _, is := compression(first); is || o.Format == Tar {
		return nil, fmt.Errorf("%w: %s in a virtual appliance is an archive, or compressed: unpack it, and import that", content.ErrInvalid, it.name)
	}
	return o.disk(ctx, s)
}

// treeOf makes a disk of a tar that was looked at.
func (o Options) treeOf(ctx context.Context, s *source) (Disk, error) {
	o.Path = s.file.Name()
	d, err := o.tree(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(s.unchanged(), s.Close()); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func checkSize(size int64) error {
	switch {
	case size == 0:
		return fmt.Errorf("%w: it is empty", content.ErrInvalid)
	case size > content.SizeMax:
		return fmt.Errorf("%w: a disk of %d bytes, the limit is %d", content.ErrInvalid, size, int64(content.SizeMax))
	}
	return nil
}

// Tree is a disk that was made of a directory or tar file.
type Tree struct{ rawDisk }

type rawDisk struct{ *source }

// Size is rounded up to a whole sector; what is beyond the file reads as zeros.
func (d rawDisk) Size() int64 {
	return (d.source.Size() + content.SectorSize - 1) / content.SectorSize * content.SectorSize
}

// ReadAt gives zeros between the end of the file and that of its last sector.
func (d rawDisk) ReadAt(p []byte, off int64) (int, error) {
	inside := p[:min(int64(len(p)), max(d.source.Size()-off, 0))]
	if n, err := d.source.ReadAt(inside, off); n < len(inside) {
		return n, err
	}
	clear(p[len(inside):])
	return len(p), nil
}

func (d rawDisk) NextData(off int64) (start, end int64, err error) {
	if off >= d.source.Size() {
		return 0, 0, d.atEnd(io.EOF)
	}
	start, end, err = files.NextData(d.file, d.base+off, d.base+d.source.Size())
	return start - d.base, end - d.base, d.atEnd(err)
}

// foreignDisk is one that a child reads from a source.
type foreignDisk struct {
	*foreign.Disk
	source *source
}

func (d foreignDisk) Close() error { return errors.Join(d.Disk.Close(), d.source.Close()) }

func (d foreignDisk) NextData(off int64) (start, end int64, err error) {
	start, end, err = d.Disk.NextData(off)
	return start, end, d.source.atEnd(err)
}
