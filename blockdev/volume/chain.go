package volume

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// segmentMax is the size at which a segment is closed: what a fold or a holder
	// takes at a time.
	segmentMax = 64 << 20
	// entriesMax closes a segment of many small entries: its table is to be read at once.
	entriesMax = journal.TableMax/2 - batchMax
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
	flushed  []place // ends of entries that were synced, for ReadSegments
	replaced bool    // another one has its name
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
func createSegment(dir string, h journal.Header) (*segment, error) {
	f, err := os.OpenFile(filepath.Join(dir, h.Name()), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(h.Encode(), 0); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return &segment{Header: h, seed: journal.Seed(h.Volume, h.Number), file: f, size: journal.HeaderSize, body: journal.HeaderSize, last: h.After.Seq}, nil
}
