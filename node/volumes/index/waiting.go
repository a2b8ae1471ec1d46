package index

import "github.com/grangemesh/grange/origin/content"

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
