package holders

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/wire"
)

// line is a journal in memory, in the format of package volume: each entry zeroes a sector,
// which is what the entry says. It implements Journal.
type line struct {
	mu   sync.Mutex
	id   content.VolumeID
	base content.Position
	segs []*lineSegment
	bad  error // of who reads it
}

type lineSegment struct {
	epoch, number uint64
	after         content.Position
	says          []uint64 // of each entry
}

func (s *lineSegment) end() content.Position {
	return content.Position{Number: s.number, Seq: s.after.Seq + uint64(len(s.says))}
}

const entrySize = 40

// bytes are those of the segment from an entry on, with its header if that is the first.
func (s *lineSegment) bytes(id content.VolumeID, from int) []byte {
	var b []byte
	if from == 0 {
		b = append(append(b, "GRSEG\x00\x00\x02"...), id[:]...)
		for _, x := range [...]uint64{s.epoch, s.number, s.after.Number, s.after.Seq, 0, 0} {
			b = binary.LittleEndian.AppendUint64(b, x)
		}
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	}
	seed := crc32.Checksum(binary.LittleEndian.AppendUint64(id[:], s.number), crc32.MakeTable(crc32.Castagnoli))
	for i, says := range s.says[from:] {
		at, seq := len(b), s.after.Seq+uint64(from+i)+1
		b = append(b, "GRE\x01\x02\x00\x00\x00"...)
		for _, x := range [...]uint64{seq, seq - 1, says} {
			b = binary.LittleEndian.AppendUint64(b, x)
		}
		b = binary.LittleEndian.AppendUint32(b, 1)
		b = binary.LittleEndian.AppendUint32(b, crc32.Update(seed, crc32.MakeTable(crc32.Castagnoli), b[at:]))
	}
	return b
}

func newLine(id content.VolumeID) *line { return &line{id: id} }

// write appends an entry, in a segment of that epoch, a new one if need be.
func (l *line) write(epoch uint64, says uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.segs); n == 0 || l.segs[n-1].epoch != epoch {
		l.rollTo(epoch)
	}
	s := l.segs[len(l.segs)-1]
	s.says = append(s.says, says)
}

// roll begins a segment.
func (l *line) roll(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rollTo(epoch)
}

func (l *line) rollTo(epoch uint64) {
	if n := len(l.segs); n > 0 && len(l.segs[n-1].says) == 0 {
		l.segs = l.segs[:n-1] // nobody has read it
	}
	after := l.endLocked()
	l.segs = append(l.segs, &lineSegment{epoch: epoch, number: after.Number + 1, after: after})
}

func (l *line) endLocked() content.Position {
	if n := len(l.segs); n > 0 {
		return l.segs[n-1].end()
	}
	return l.base
}

func (l *line) End() content.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.endLocked()
}

// all is what all entries say, from the base on.
func (l *line) all() (out []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segs {
		out = append(out, s.says...)
	}
	return out
}

// rebase lets go of the segments up to p, where one ends.
func (l *line) rebase(p content.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base = p
	l.segs = slices.DeleteFunc(l.segs, func(s *lineSegment) bool { return s.number <= p.Number })
}

func (l *line) Sealed() []journal.AdoptedSegment { return nil }

func (l *line) Held(uint64) {}

func (l *line) ReadSegments(w io.Writer, after content.Position, _ int64) (content.Position, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bad != nil {
		return after, 0, l.bad
	}
	for _, s := range l.segs {
		if s.end().Seq <= after.Seq {
			continue
		}
		if s.after.Seq > after.Seq {
			return after, 0, fmt.Errorf("%w: it begins behind entry %d", content.ErrNotFound, s.after.Seq)
		}
		from := 0
		if after.Number == s.number {
			from = int(after.Seq - s.after.Seq)
		}
		b := s.bytes(l.id, from)
		n, err := w.Write(b)
		return s.end(), int64(n), err
	}
	return after, 0, nil
}

// lineOf reads segments back, as a volume adopts them.
func lineOf(id content.VolumeID, base content.Position, segments [][]byte) (*line, error) {
	l := &line{id: id, base: base}
	for _, b := range segments {
		h, err := journal.DecodeHeader(b)
		if err != nil {
			return nil, err
		}
		if l.endLocked() != h.After && len(l.segs) > 0 {
			return nil, fmt.Errorf("segment %d follows %v, not %v", h.Number, l.endLocked(), h.After)
		}
		s := &lineSegment{epoch: h.Epoch, number: h.Number, after: h.After}
		for at := journal.HeaderSize; at < len(b); at += entrySize {
			s.says = append(s.says, binary.LittleEndian.Uint64(b[at+24:]))
		}
		if !bytes.Equal(s.bytes(id, 0), b) {
			return nil, fmt.Errorf("segment %d has other bytes than it should", h.Number)
		}
		l.segs = append(l.segs, s)
	}
	return l, nil
}

// pieceOf is the message that brings a segment's bytes from an entry on.
func (l *line) pieceOf(c wire.Claim, segment, from int) wire.Extend {
	s := l.segs[segment]
	m := wire.Extend{Claim: c, At: wire.Place{Epoch: s.epoch, Number: s.number}, Seq: s.end().Seq, Bytes: s.bytes(l.id, from)}
	if from > 0 {
		m.At.Offset = journal.HeaderSize + int64(from)*entrySize
	} else if segment > 0 {
		m.Before = journal.HeaderSize + int64(len(l.segs[segment-1].says))*entrySize
	}
	return m
}
