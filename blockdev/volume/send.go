package volume

import (
	"fmt"
	"io"
	"slices"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

// ReadSegments writes bytes of the journal that are durable here to w: those of one segment
// that come behind a position, whole entries without the table, up to most bytes but for
// the first entry. They begin with the segment's header, if the position is the end of
// another one. A merged segment comes whole, table and all, and stands for what the caller
// may have of its range. It returns the position with which they end, which is after when
// there is nothing more, and how many bytes there were. ErrNotFound means that the journal
// begins behind the position.
func (v *Volume) ReadSegments(w io.Writer, after content.Position, most int64) (content.Position, int64, error) {
	v.mu.RLock()
	if v.closed {
		v.mu.RUnlock()
		return after, 0, fmt.Errorf("read journal: %w", content.ErrClosed)
	}
	at := v.pin()
	defer at.readers.Done()
	s, from, end := v.following(after)
	v.mu.RUnlock()
	switch {
	case s == nil && from.seq > after.Seq:
		return after, 0, fmt.Errorf("read journal: %w", v.gone(after))
	case s == nil || end.seq <= after.Seq:
		return after, 0, nil
	}
	from, end, err := s.walk(from, end, after.Seq, most)
	if err != nil {
		return after, 0, fmt.Errorf("read journal: %w", err)
	}
	n, err := io.Copy(w, io.NewSectionReader(s.file, from.off, end.off-from.off))
	return content.Position{Number: s.Number, Seq: end.seq}, n, err
}

// Held says that all who read the journal have it up to seq: what is merged is sent whole,
// and so nothing is that one of them has in part. MaxUint64: there is nobody.
func (v *Volume) Held(seq uint64) { v.held.Store(seq) }

// following returns the segment that has what comes behind a position, a place in it at
// or before that, and the end of what is durable; without one, where the journal begins.
// Called with mu.
func (v *Volume) following(after content.Position) (s *segment, from, end place) {
	i := slices.IndexFunc(v.chain, func(s *segment) bool { return s.last > after.Seq })
	switch {
	case i < 0:
		return nil, place{seq: v.ground.base.Seq}, place{}
	case v.chain[i].After.Seq > after.Seq:
		return nil, place{seq: v.chain[i].After.Seq}, place{}
	}
	s = v.chain[i]
	from, end = place{seq: s.After.Seq}, place{s.last, s.body}
	if s.Merged > 0 {
		return s, from, place{s.last, s.size}
	}
	if !s.synced {
		if end = (place{}); len(s.flushed) > 0 {
			end = s.flushed[len(s.flushed)-1]
		}
	}
	if after.Number == s.Number {
		from.off = journal.HeaderSize
		n, _ := slices.BinarySearchFunc(s.flushed, after.Seq+1, func(p place, seq uint64) int { return int(int64(p.seq) - int64(seq)) })
		if n > 0 {
			from = s.flushed[n-1]
		}
	}
	return s, from, end
}

// walk moves from on to the entry behind seq, and end back to where the bytes between are no more than most, but at least one entry.
func (s *segment) walk(from, end place, seq uint64, most int64) (place, place, error) {
	if from.seq == seq && end.off-from.off <= most || s.Merged > 0 {
		return from, end, nil
	}
	head := make([]byte, journal.HeadMax)
	for to := (place{from.seq, max(from.off, journal.HeaderSize)}); to.seq < end.seq; {
		n, err := s.file.ReadAt(head, to.off)
		if err != nil && err != io.EOF {
			return from, end, err
		}
		e, err := journal.DecodeEntry(s.seed, head[:n])
		if err != nil {
			return from, end, fmt.Errorf("%s at %d: %w: %w", s.file.Name(), to.off, content.ErrCorrupt, err)
		}
		next := place{e.Seq, to.off + e.Size()}
		switch {
		case e.Seq <= seq:
			from = next
		case next.off-from.off > most && to.seq > seq:
			return from, to, nil
		}
		to = next
	}
	return from, end, nil
}
