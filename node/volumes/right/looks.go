package right

import (
	"maps"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// SaidFor is how long a record that says that a volume is this node's is taken to say
	// so still, while the node is not cut off: with 1,000 volumes one look in 0.6 s.
	SaidFor = 10 * time.Minute
	// vainFor is how long it is before one is looked at again that could not be read.
	vainFor = time.Minute
	// stoodFor is how long nobody asked what is due where the process stood still, and the
	// mesh went on without it.
	stoodFor = 15 * time.Second
)

// Looks says when the records of volumes that a node serves are to be looked at. It is
// pure: its owner says what time it is. Use: NewLooks.
type Looks struct {
	asked    map[content.VolumeID]time.Time // whether that could be read or not
	since    time.Time                      // what was said before says nothing any more
	returned int64
	last     time.Time
}

// NewLooks is for a start, before the records are read by which volumes are attached;
// returned is how often this node was cut off and is back.
func NewLooks(returned int64, now time.Time) *Looks {
	return &Looks{asked: map[content.VolumeID]time.Time{}, returned: returned, last: now}
}

// Begin is called before, and End after what is due is looked at, every few seconds.
func (l *Looks) Begin(returned int64, now time.Time) {
	if returned != l.returned || now.Sub(l.last) > stoodFor {
		l.returned, l.since = returned, now
	}
}

// End is for the end of what Begin begins. What was asked for longer ago says nothing more.
func (l *Looks) End(now time.Time) {
	l.last = now
	maps.DeleteFunc(l.asked, func(_ content.VolumeID, asked time.Time) bool { return now.Sub(asked) >= vainFor })
}

// IsDue reports whether the record of a volume is to be looked at, which is done then; said is when
// it was last asked for and said that the volume is this node's, zero if it is not known to say so.
func (l *Looks) IsDue(id content.VolumeID, said, now time.Time) bool {
	last, wait := said, SaidFor
	if asked := l.asked[id]; !said.IsZero() && asked.After(said) { // in vain
		last, wait = asked, vainFor
	}
	if !last.Before(l.since) && now.Sub(last) < wait {
		return false
	}
	l.asked[id] = now
	return true
}
