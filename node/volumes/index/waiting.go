package index

import (
	"slices"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Waiting is a snapshot of a volume of this node that is not durable yet. Size is what the
// volume had then.
type Waiting struct {
	Number uint64           `json:"number"`
	At     content.Position `json:"at"`
	Size   int64            `json:"size"`
}

// WaitingOf is what is noted of a snapshot.
func WaitingOf(s catalog.Snapshot) Waiting { return Waiting{s.Number, s.At, s.Size} }

// Places are those of the snapshots that are not durable yet.
func (e Entry) Places() (out []content.Position) {
	for _, w := range e.Waiting {
		out = append(out, w.At)
	}
	return out
}

// SizeAt is how large the volume was at a place, as far as snapshots that are not durable yet
// tell: those behind it had no less. Where none does it is any size.
func (e Entry) SizeAt(at content.Position) int64 {
	for _, w := range e.Waiting {
		if w.At.Seq >= at.Seq {
			return w.Size
		}
	}
	return content.SizeMax
}

// Reached notes that a snapshot is waited for no more.
func (x *Index) Reached(name string, w Waiting) error {
	_, err := x.Change(name, func(e *Entry) {
		e.Waiting = slices.DeleteFunc(slices.Clone(e.Waiting), func(other Waiting) bool { return other == w })
	})
	return err
}
