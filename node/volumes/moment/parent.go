package moment

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Parent is what a fork begins as.
type Parent struct {
	Known    catalog.Snapshot // what its record names of it
	Segments []journal.AdoptedSegment
	Done     func() // gives back what was kept of it; nil for nothing
}

// End gives back what was kept of the parent.
func (p Parent) End() {
	if p.Done != nil {
		p.Done()
	}
}

// Begins has an entry be a fork. What it begins with is the parent's on this node's disk,
// where that has it, by hard links.
func (p Parent) Begins(e *index.Entry) error {
	if err := Fits(e, p.Known.Size); err != nil {
		return err
	}
	e.Folded, e.FsUsed = p.Known.Folded, p.Known.FsUsed
	e.Ancestors = journal.Ancestors(p.Segments, e.ID)
	return nil
}

// Fits gives a new volume the size of what it is made from, unless it has a larger one.
func Fits(e *index.Entry, size int64) error {
	e.Size = cmp.Or(e.Size, size)
	if e.Size < size {
		return fmt.Errorf("%w: %s has %d bytes, and a volume of %d can't hold it", content.ErrInvalid, e.From, size, e.Size)
	}
	return nil
}

// ParentAt is a place of an open volume, which is kept until done.
func ParentAt(vol *volume.Volume, known catalog.Snapshot) (Parent, error) {
	p := Parent{Known: known, Done: func() { vol.Release(known.At) }}
	last := known.Base
	for _, s := range vol.Sealed() {
		if s.Ref.After.Seq <= last.Seq && s.Ref.Through.Seq > last.Seq && s.Ref.Through.Seq <= known.At.Seq { // what a fold has cut off is missed
			p.Segments = append(p.Segments, s)
			last = s.Ref.Through
		}
	}
	if last.Seq != known.At.Seq || known.Through().Seq > last.Seq {
		p.Done()
		return Parent{}, fmt.Errorf("%w: its journal was rewritten meanwhile; try again", content.ErrUnavailable)
	}
	return p, nil
}

// Parent is all that a moment has that nobody writes. It stays open until done.
func (m Moment) Parent(known catalog.Snapshot) (Parent, error) {
	p, err := ParentAt(m.Vol, known)
	if err != nil {
		return p, errors.Join(err, m.Close())
	}
	p.Done = func() { _ = m.Close() } // it was only read
	if n := len(p.Segments); n > 0 {  // a loss of power may have left half an entry behind it: what is whole is copied
		last := &p.Segments[n-1]
		path, size := last.Path, last.Ref.Bytes
		last.Path, last.Open = "", func() (io.ReadCloser, error) {
			f, err := os.Open(path)
			return bucket.Exactly(f, size), err
		}
	}
	return p, nil
}
