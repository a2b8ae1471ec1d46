package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"

	"github.com/grangemesh/grange/origin/content"
)

// Disk is a disk to be published. ReadAt fills all of p inside Size, or fails.
type Disk interface {
	io.ReaderAt
	io.Closer
	// Size in bytes.
	Size() int64
	// NextData returns the first range at or after off that may hold anything but
	// zeros; io.EOF when there is none.
	NextData(off int64) (start, end int64, err error)
}

// Format names what a source is.
type Format string

// The formats. Auto looks at the source.
const (
	Auto  Format = "auto"
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VHDX  Format = "vhdx"
	VDI   Format = "vdi"
	VPC   Format = "vpc"
	Tar   Format = "tar"
	Dir   Format = "dir"
)

// Options says what to open.
type Options struct {
	// Path of the source.
	Path   string
	Format Format
	// Temp is a folder for the working files of formats that need some; they may
	// take as much as the disk's data.
	Temp string
	// Size of the file system for Dir and Tar, in bytes; 0 fits it.
	Size int64
	// Previous writes the disk that this one replaces into a sparse file, which a
	// directory or tar file then updates in place; nil when there is none.
	Previous func(context.Context, *os.File) error
	// Except is a folder that is left out of a directory that holds it: the node's own.
	Except string
	// Room is asked before about n bytes are written to Temp; its error ends the work.
	// May be nil.
	Room func(n int64) error
	// Note is told what is being done, for people; may be nil.
	Note func(string)
	// Warn is told what of the source is not in the disk, or may not be as it was; may
	// be nil.
	Warn func(string)
}

// Open opens a source as a disk. The caller closes it, which removes what was
// unpacked. Sources that can't be a disk are ErrInvalid.
func Open(ctx context.Context, o Options) (Disk, error) {
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
		return nil, fmt.Errorf("open source: %w", err)
	}
	o.Path = path
	info, err := os.Stat(o.Path)
	if err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	if o.Format == "" || o.Format == Auto {
		if o.Format, err = detect(o.Path, info); err != nil {
			return nil, fmt.Errorf("open source: %w", err)
		}
	}
	if info.IsDir() != (o.Format == Dir) {
		return nil, fmt.Errorf("open source %s as %s: %w: directories are of format dir, and nothing else is", o.Path, o.Format, content.ErrInvalid)
	}
	var d Disk
	switch o.Format {
	case Raw:
		d, err = openRaw(o.Path)
	case QCOW2:
		d, err = openQCOW2(o.Path)
	case VMDK, VHDX, VDI, VPC:
		d, err = o.unpack(ctx)
	case Dir, Tar:
		d, err = o.tree(ctx)
	default:
		return nil, fmt.Errorf("open source %s: %w: unknown format %.20q", o.Path, content.ErrInvalid, o.Format)
	}
	if err != nil {
		return nil, fmt.Errorf("open source %s as %s: %w", o.Path, o.Format, err)
	}
	if err := checkSize(d.Size()); err != nil {
		return nil, errors.Join(fmt.Errorf("open source %s: %w", o.Path, err), d.Close())
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

// headSize is how much of a file its format shows in: tar's mark lies at 257.
const headSize = 512

func detect(path string, info os.FileInfo) (Format, error) {
	if info.IsDir() {
		return Dir, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, headSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	head = head[:n]
	for _, m := range []struct {
		at     int
		magic  string
		format Format
	}{
		{0, "QFI\xfb", QCOW2}, {0, "KDMV", VMDK}, {0, "# Disk DescriptorFile", VMDK}, {0, "vhdxfile", VHDX}, {0, "conectix", VPC},
		{64, "\x7f\x10\xda\xbe", VDI}, {257, "ustar", Tar},
	} {
		if len(head) >= m.at && strings.HasPrefix(string(head[m.at:]), m.magic) {
			return m.format, nil
		}
	}
	if strings.HasPrefix(string(head), "\x1f\x8b") || strings.HasPrefix(string(head), "\x28\xb5\x2f\xfd") || strings.HasPrefix(string(head), "\xfd7zXZ") {
		return "", fmt.Errorf("%s: %w: it is compressed; unpack it, or pipe it through: zcat FILE | grange image import NAME -", path, content.ErrInvalid)
	}
	return Raw, nil
}

// rawDisk is a file whose bytes are the disk's.
type rawDisk struct {
	*os.File
	size   int64
	remove bool // with Close: a working file
}

func openRaw(path string) (*rawDisk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // block devices have no size to stat
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &rawDisk{File: f, size: size}, nil
}

// openWorking opens a file that goes with the disk.
func openWorking(path string) (Disk, error) {
	d, err := openRaw(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	d.remove = true
	return d, nil
}

// Size is rounded up to a whole sector; what is beyond the file reads as zeros.
func (d *rawDisk) Size() int64 {
	return (d.size + content.SectorSize - 1) / content.SectorSize * content.SectorSize
}

// ReadAt gives zeros between the end of the file and that of its last sector.
func (d *rawDisk) ReadAt(p []byte, off int64) (int, error) {
	inside := p[:min(int64(len(p)), max(d.size-off, 0))]
	if n, err := d.File.ReadAt(inside, off); n < len(inside) {
		return n, err
	}
	clear(p[len(inside):])
	return len(p), nil
}

func (d *rawDisk) Close() error {
	err := d.File.Close()
	if d.remove {
		err = errors.Join(err, os.Remove(d.Name()))
	}
	return err
}

func (d *rawDisk) NextData(off int64) (start, end int64, err error) {
	if off >= d.size {
		return 0, 0, io.EOF
	}
	return nextData(d.File, off, d.size)
}

// qcow2Disk reads clusters in place.
type qcow2Disk struct {
	image.Image
	file *os.File
}

func openQCOW2(path string) (Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var img *qcow2.Qcow2
	if err = refuseBacking(f); err == nil {
		img, err = qcow2.Open(f, nil)
	}
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", content.ErrInvalid, err), f.Close())
	}
	return &qcow2Disk{img, f}, nil
}

// refuseBacking keeps an image from naming other files of the host: the library
// would open them. The header holds the offset of such a name in bytes 8 to 15.
func refuseBacking(f *os.File) error {
	offset := make([]byte, 8)
	if _, err := f.ReadAt(offset, 8); err != nil {
		return err
	}
	if string(offset) != "\x00\x00\x00\x00\x00\x00\x00\x00" {
		return errors.New("it needs its backing file; flatten it with: qemu-img convert -O qcow2 OLD NEW")
	}
	return nil
}

func (d *qcow2Disk) Close() error { return errors.Join(d.Image.Close(), ignoreClosed(d.file.Close())) }

// ignoreClosed forgives a second Close: the library closes the file itself.
func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func (d *qcow2Disk) NextData(off int64) (start, end int64, err error) {
	for off < d.Size() {
		e, err := d.Extent(off, d.Size()-off)
		if err != nil {
			return 0, 0, fmt.Errorf("%w: extent at %d: %w", content.ErrCorrupt, off, err)
		}
		if e.Length <= 0 {
			return 0, 0, fmt.Errorf("%w: extent at %d is empty", content.ErrCorrupt, off)
		}
		if e.Allocated && !e.Zero {
			return e.Start, e.Start + e.Length, nil
		}
		off = e.Start + e.Length
	}
	return 0, 0, io.EOF
}
