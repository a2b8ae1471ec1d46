package index

import (
	"cmp"
	"errors"

	"github.com/grangemesh/grange/origin/content"
)

// Waiting is a snapshot of a volume of this node that is not durable yet, and the volume's size then.
type Waiting struct {
	Number uint64           `json:"number"`
	At     content.Position `json:"at"`
	Size   int64            `json:"size"`
}

// Places are those of the snapshots that are not durable yet.
func (e Entry) Places() (out []content.Position) {
	for _, w := range e.Waiting {
		out = append(out, w.At)
	}
	return out
}

// SizeAt is how large the volume was at a place, at most, by the snapshots that are not durable yet.
func (e Entry) SizeAt(at content.Position) int64 {
	for _, w := range e.Waiting { // they rise, and so do their sizes
		if w.At.Seq >= at.Seq {
			return w.Size
		}
	}
	return content.SizeMax
}

// Began returns where the journal of a volume ended when it was opened first since Joined, and
// notes that it is where it ends now, if nothing is noted: on a full disk for this process alone.
func (x *Index) Began(name string, end uint64) uint64 {
	e, _ := x.Change(name, func(e *Entry) { e.Began = cmp.Or(e.Began, &end) })
	return *cmp.Or(e.Began, &end)
}

// Blind is where the journal of a volume ended, and the last epoch that was known, when it was opened
// first without the record since that epoch: what others have of it by then and behind that, the disk lacks.
type Blind struct {
	Epoch uint64 `json:"epoch"`
	End   uint64 `json:"end"`
}

// Blinded returns that of a volume that is opened now, and notes it: on a full disk for this process alone.
func (x *Index) Blinded(name string, end uint64) (*Blind, error) {
	e, err := x.Change(name, func(e *Entry) {
		if e.Blind == nil || e.Blind.Epoch < e.Epoch {
			e.Blind = &Blind{e.last(), end}
		}
	})
	if errors.Is(err, content.ErrNoSpace) {
		err = nil
	}
	return e.Blind, err
}

// Joined notes that holders are going to have more than what the journal ended with.
func (x *Index) Joined(name string) error {
	if e, _ := x.Get(name); e.Began == nil {
		return nil
	}
	_, err := x.Change(name, func(e *Entry) { e.Began = nil })
	return err
}
