package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert/files"
	"github.com/grangemesh/grange/origin/convert/foreign"
)

// source is a file that is imported, or the part of it that is a disk: what is read
// of it is checked to be of one moment.
type source struct {
	*io.SectionReader
	file *os.File
	base int64
	seen fs.FileInfo
	temp bool // a working file: removed with Close
}

// openSource opens a file or block device. Whatever can keep a reader waiting is
// refused, and a disk that something writes to.
func openSource(path string) (*source, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if err := mayRead(info); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may have become a pipe by now
	if err != nil {
		return nil, err
	}
	s := &source{file: f}
	if s.seen, err = f.Stat(); err == nil {
		err = mayRead(s.seen)
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd) // block devices have no size to stat
	}
	if err == nil {
		err = inUse(f, s.seen)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.SectionReader = io.NewSectionReader(f, 0, size)
	return s, nil
}

func mayRead(info fs.FileInfo) error {
	if m := info.Mode(); !m.IsRegular() && m&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return fmt.Errorf("%w: it is no file and no block device; what comes through a pipe is imported with: COMMAND | grange image import NAME -", content.ErrInvalid)
	}
	return nil
}

func (s *source) part(off, n int64) {
	s.base, s.SectionReader = s.base+off, io.NewSectionReader(s.file, s.base+off, n)
}

// unchanged fails when the file was written to since it was opened.
func (s *source) unchanged() error {
	if !s.seen.Mode().IsRegular() {
		return nil // a device tells of no changes
	}
	now, err := s.file.Stat()
	if err == nil && !sameMoment(s.seen, now) {
		err = fmt.Errorf("%w: %s was changed while it was read; import a copy, or when nothing writes to it", content.ErrConflict, s.file.Name())
	}
	return err
}

// atEnd replaces the end of the data by what has changed meanwhile.
func (s *source) atEnd(err error) error {
	if err != io.EOF {
		return err
	}
	if err := s.unchanged(); err != nil {
		return err
	}
	return io.EOF
}

func (s *source) Close() error {
	err := s.file.Close()
	if s.temp {
		err = errors.Join(err, os.Remove(s.file.Name()))
	}
	return err
}

// inflated replaces a source that is compressed by a working file with what is in it.
func (o Options) inflated(ctx context.Context, s *source) (*source, error) {
	first, err := head(s)
	with, is := compression(first)
	if err == nil && !is {
		return s, nil
	}
	defer s.Close()
	if err != nil {
		return nil, err
	}
	o.Note("inflating with " + with.Tool)
	f, err := os.CreateTemp(o.Temp, "inflated-*")
	if err != nil {
		return nil, err
	}
	out := &Sparse{File: f, Room: o.Room}
	err = foreign.Inflate(ctx, s.file, with, out, o.Warn)
	if err = errors.Join(err, out.Finish(), f.Close(), s.unchanged()); err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return openWorking(f.Name())
}

// openWorking opens a file that goes when it is closed.
func openWorking(path string) (*source, error) {
	s, err := openSource(path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	s.temp = true
	return s, nil
}

// roomStep is how much of a stream is written between two looks at the room, in bytes.
const roomStep = 4 << 20

// Sparse writes a stream to a file that is empty, and leaves zeros out. Finish ends it.
type Sparse struct {
	File *os.File
	// Room is asked before about n bytes are written; its error ends the writing.
	Room func(n int64) error
	off  int64
	left int // until the next look at the room
}

func (s *Sparse) Write(p []byte) (int, error) {
	if s.off+int64(len(p)) > content.SizeMax {
		return 0, fmt.Errorf("%w: it is larger than the largest disk, %d bytes", content.ErrInvalid, int64(content.SizeMax))
	}
	err := files.NotZero(p, s.off, func(b []byte, off int64) error {
		if s.left -= len(b); s.left < 0 {
			next := max(roomStep, len(b))
			if err := s.Room(int64(next)); err != nil {
				return err
			}
			s.left = next - len(b)
		}
		_, err := s.File.WriteAt(b, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	s.off += int64(len(p))
	return len(p), nil
}

// Finish gives the file its length.
func (s *Sparse) Finish() error { return s.File.Truncate(s.off) }
