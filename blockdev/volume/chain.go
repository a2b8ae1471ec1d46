package volume

import (
	"errors"
	"os"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// segmentMax is the size at which a segment is closed: what a fold or a holder
	// takes at a time.
	segmentMax = 64 << 20
	// entriesMax closes a segment of many small entries: its table is to be read at once.
	entriesMax = journal.TableMax/2 - batchMax
	// sparesMax bounds the files that are kept for segments to come, in full segments: a half
	// of slackSegments, as the other is for what compaction copies and comes meanwhile.
	sparesMax = slackSegments / 2
	// zeroMax bounds the sectors of one entry of zeros.
	zeroMax = 1 << 31
)

// segment is one file of the journal.
type segment struct {
	journal.Header
	slot     uint32 // where extents find it
	seed     uint32 // of its sums
	file     *os.File
	size     int64
	body     int64  // where its entries end: it may have a table behind them
	last     uint64 // seq of its last entry
	entries  int
	sealed   bool    // nothing is added any more
	synced   bool    // as it is and will be, once another one follows
	room     int64   // length of its file while that is longer: one that is used again
	flushed  []place // ends of entries that were synced, for ReadSegments
	shadowed bool    // a merged one has its name, maybe in vain
	replaced bool    // it has for good
}

// place is the end of an entry in a segment.
type place struct {
	seq uint64
	off int64
}

// through is the position with which the segment ends by now.
func (s *segment) through() content.Position { return content.Position{Number: s.Number, Seq: s.last} }

// empty reports whether it has no entry.
func (s *segment) empty() bool { return s.last == s.After.Seq }

// createSegment makes a segment file, without a slot; it is durable with the first sync of the
// folder and of itself.
func (v *Volume) createSegment(h journal.Header) (*segment, error) {
	v.mu.RLock()
	again := v.spares.Bytes() <= v.spareRoom() // else it is given back, and what comes takes its place
	v.mu.RUnlock()
	f, room, err := v.spares.Open(h, again)
	if err != nil {
		return nil, err
	}
	if v.cfg.Step("file"); room > 0 {
		v.cfg.Step("reused")
	}
	if _, err := f.WriteAt(h.Encode(), 0); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &segment{Header: h, seed: journal.Seed(h.Volume, h.Number), file: f, room: room, size: journal.HeaderSize, body: journal.HeaderSize, last: h.After.Seq}, nil
}

// spareRoom is how many bytes of files may be kept for segments to come: they are a part of
// what the journal may take. Called with mu.
func (v *Volume) spareRoom() int64 {
	taken, live := v.space()
	most := sparesMax * v.cfg.SegmentSize
	return min(most, 2*live+most-taken-v.tail.spare())
}

// spare is what of the segment's file has no entries yet.
func (s *segment) spare() int64 {
	if s == nil {
		return 0
	}
	return max(s.room-s.size, 0)
}

// discard takes a segment's name away, and returns its file if it is to be used again, once
// nobody reads it any more. All those files may take room. A small one is of no use, and the
// bytes of other volumes are none under a name of this one.
func (v *Volume) discard(s *segment, room int64) (kept []journal.Spare, err error) {
	if s.Volume == v.cfg.ID && !s.shadowed && s.size >= v.cfg.SegmentSize/2 {
		if spare, ok := v.spares.Claim(s.size, room); ok {
			return []journal.Spare{spare}, v.spares.Rename(v.path(s), spare)
		}
	}
	v.pressure.freed.Add(s.size)
	return nil, os.Remove(v.path(s))
}

// Yield gives back what files the volume keeps for segments to come where they are too many,
// or the disk is short of space. A volume that is written to does that by itself.
func (v *Volume) Yield() {
	v.mu.RLock()
	room := v.spareRoom()
	v.mu.RUnlock()
	if v.pressed() {
		room = 0
	}
	freed, err := v.spares.Shed(max(room, 0))
	if v.pressure.freed.Add(freed); err != nil {
		v.cfg.Log.Warn("files of a journal that nothing needs any more are left", "dir", v.cfg.Dir, "err", err)
	}
}
