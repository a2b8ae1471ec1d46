package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// AdoptedSegment is a sealed segment, and where its bytes are: a file, which gets another
// name if it lies on the same file system and nobody writes to it any more, or Open.
type AdoptedSegment struct {
	Ref  content.SegmentRef
	Path string
	Open func() (io.ReadCloser, error)
}

// Ancestors are the other volumes that wrote segments of a volume of that ID.
func Ancestors(segments []AdoptedSegment, id content.VolumeID) (out []content.VolumeID) {
	for _, s := range segments {
		if s.Ref.Volume != id && !slices.Contains(out, s.Ref.Volume) {
			out = append(out, s.Ref.Volume)
		}
	}
	return out
}

// The steps of Adopt: the note says what is to come, and one more segment is there.
const (
	stepBegun  = "adoption begun"
	stepPlaced = "adopted"
)

// Adopt fills the folder of a volume that Create has made, and nobody has opened, with
// segments that a record names, oldest first, each of which it checks against its Ref;
// where Sum is zero only against Bytes and its header. All of them are durable when it
// returns. Without success the folder is of no use, and to be removed. step is told of each
// place at which a crash leaves such a folder.
func Adopt(dir string, id content.VolumeID, segments []AdoptedSegment, step func(string)) error {
	if len(segments) == 0 {
		return nil
	}
	end := segments[len(segments)-1].Ref // said first: what is not there yet is missed
	if err := cmp.Or(WriteFirst(dir, id, Note{end.Through.Number, end.Bytes, end.Through.Seq}), durable.SyncDir(dir)); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	step(stepBegun)
	for i, s := range segments { // before any is read, which takes long: compaction removes them meanwhile
		ref := s.Ref
		if i > 0 && ref.After != segments[i-1].Ref.Through {
			return fmt.Errorf("adopt segment %d: %w: it follows entry %d, and the one before ends with another", ref.Through.Number, content.ErrCorrupt, ref.After.Seq)
		}
		if s.Path != "" {
			_ = os.Link(s.Path, s.in(dir)) // or it is copied
		}
	}
	for _, s := range segments {
		if err := s.place(s.in(dir)); err != nil {
			return fmt.Errorf("adopt segment %d: %w", s.Ref.Through.Number, err)
		}
		step(stepPlaced)
	}
	return durable.SyncDir(dir)
}

func (s AdoptedSegment) in(dir string) string {
	return filepath.Join(dir, Header{Epoch: s.Ref.Epoch, Number: s.Ref.Through.Number}.Name())
}

// place puts the segment at path, whole and synced.
func (s AdoptedSegment) place(path string) error {
	if _, err := os.Stat(path); err != nil {
		if err := s.copy(path); err != nil {
			return err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(s.check(f), f.Sync(), f.Close())
}

func (s AdoptedSegment) copy(path string) error {
	open := s.Open
	if s.Path != "" {
		open = func() (io.ReadCloser, error) { return os.Open(s.Path) }
	}
	in, err := open()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	_, err = io.Copy(out, io.LimitReader(in, s.Ref.Bytes+1))
	return errors.Join(err, out.Close(), in.Close())
}

// check compares a file with what the Ref says of it.
func (s AdoptedSegment) check(f *os.File) error {
	sum := blake3.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	h, bad := ReadHeader(f)
	merged := h.Merged == 0 || h.Merged == s.Ref.Through.Seq
	switch {
	case n != s.Ref.Bytes, s.Ref.Sum != [16]byte{} && s.Ref.Sum != [16]byte(sum.Sum(nil)):
		return fmt.Errorf("%s: %w: it has %d bytes, or others than its record says, of %d", f.Name(), content.ErrCorrupt, n, s.Ref.Bytes)
	case bad != nil || !merged || h.Volume != s.Ref.Volume || h.Epoch != s.Ref.Epoch || h.Number != s.Ref.Through.Number || h.After != s.Ref.After:
		return fmt.Errorf("%s: %w: its header is not what its record says", f.Name(), content.ErrCorrupt)
	}
	return nil
}
