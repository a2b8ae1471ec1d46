package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Claim says for whom a message of the journal lane speaks: the writer of a volume under
// an epoch, in one start of its process.
type Claim struct {
	Volume             content.VolumeID
	Epoch, Incarnation uint64
}

// Describe names the claim to people. It is no String, which messages would have too.
func (c Claim) Describe() string {
	return fmt.Sprintf("epoch %d of volume %s (%016x)", c.Epoch, c.Volume, c.Incarnation)
}

// Place is an offset, in bytes, in a segment of a journal.
type Place struct {
	Epoch, Number uint64
	Offset        int64
}

// String names the place to people.
func (p Place) String() string { return fmt.Sprintf("%x-%x at %d", p.Epoch, p.Number, p.Offset) }

const (
	idSize          = len(content.VolumeID{})
	claimSize       = idSize + 16
	placeSize       = 24
	positionSize    = 16
	promiseSize     = claimSize + positionSize + 8 + 1
	extendSize      = claimSize + placeSize + 16
	heldSize        = claimSize + positionSize + 8
	heldSegmentSize = idSize + 8 + positionSize + positionSize + 8

	// PieceMax bounds the bytes of one Extend or Read: a gigabit carries them in 2 ms,
	// for which a flush of another volume waits at most.
	PieceMax = 256 << 10
	// SegmentsMax bounds the segments of a volume that a holder has: a quarter TiB of
	// full ones, of which a fold leaves some.
	SegmentsMax = 4096
	// AncestorsMax bounds the volumes whose segments a fork's journal begins with.
	AncestorsMax = 16
	// quietMax bounds what a duration can say, in milliseconds.
	quietMax = uint64(math.MaxInt64 / time.Millisecond)
)

const (
	promiseBegin = 1
	dropAll      = 1
)

// appendFixed appends numbers, ids, and structs of them, as they stand in memory.
func appendFixed(b []byte, fields ...any) []byte {
	var err error
	for _, f := range fields {
		if b, err = binary.Append(b, binary.BigEndian, f); err != nil {
			panic(fmt.Sprintf("wire: %T: %v", f, err))
		}
	}
	return b
}

// decodeFixed reads into pointers what appendFixed has written to the beginning of a
// payload, which is as long as its type's limits say, and returns the rest.
func decodeFixed(p []byte, fields ...any) (rest []byte) {
	for _, f := range fields {
		n, err := binary.Decode(p, binary.BigEndian, f)
		if err != nil {
			panic(fmt.Sprintf("wire: %T of %d bytes: %v", f, len(p), err))
		}
		p = p[n:]
	}
	return p
}

func (p Place) check() error {
	if p.Offset < 0 {
		return fmt.Errorf("%w: offset %d", content.ErrCorrupt, p.Offset)
	}
	return nil
}

// Promise asks a holder to take bytes of that claim only, and of no earlier one, from its answer on: a Held.
type Promise struct {
	Claim
	// Base is up to where the volume's record has everything.
	Base content.Position
	// Name is the volume's, by which the holder finds its record; to NameMax bytes.
	Name string
	// Ancestors are other volumes with whose segments its journal may begin.
	Ancestors []content.VolumeID
	// Begin makes the promise of who has nothing of the volume; else that is refused. Whole
	// is up to where that one has to have everything before it promises itself to another.
	Begin bool
	Whole uint64
}

func (m Promise) encode(b []byte) (p []byte, t Type, flags uint8) {
	if m.Begin {
		flags = promiseBegin
	}
	b = append(appendFixed(b, m.Claim, m.Base, m.Whole, uint8(len(m.Name))), m.Name...)
	for _, id := range m.Ancestors {
		b = append(b, id[:]...)
	}
	return b, TypePromise, flags
}

func decodePromise(flags uint8, p []byte) (Message, error) {
	m, name := Promise{Begin: flags&promiseBegin != 0}, uint8(0)
	rest := decodeFixed(p, &m.Claim, &m.Base, &m.Whole, &name)
	n := int(name)
	if n > content.NameMax || n > len(rest) || (len(rest)-n)%idSize != 0 || (len(rest)-n)/idSize > AncestorsMax {
		return nil, fmt.Errorf("%w: name of %d bytes and ancestors in %d", content.ErrCorrupt, n, len(rest))
	}
	m.Name = string(rest[:n])
	for id := range slices.Chunk(rest[n:], idSize) {
		m.Ancestors = append(m.Ancestors, content.VolumeID(id))
	}
	return m, nil
}

// Extend brings bytes of a segment, 1 to PieceMax, to where the holder's end.
type Extend struct {
	Claim
	At Place
	// Before is how many bytes the segment before has, where this one begins; else 0.
	Before int64
	// Seq is the last entry of which all is there with these bytes, which end with it if
	// it is another one than before.
	Seq   uint64
	Bytes []byte
}

func (m Extend) encode(b []byte) ([]byte, Type, uint8) {
	return append(appendFixed(b, m.Claim, m.At, m.Before, m.Seq), m.Bytes...), TypeExtend, 0
}

func decodeExtend(_ uint8, p []byte) (Message, error) {
	var m Extend
	m.Bytes = decodeFixed(p, &m.Claim, &m.At, &m.Before, &m.Seq)
	if m.Before < 0 {
		return nil, fmt.Errorf("%w: segment of %d bytes", content.ErrCorrupt, m.Before)
	}
	return m, m.At.check()
}

// Read asks for bytes of a segment: an Answer with Length of them, 1 to PieceMax, or fewer where it ends.
type Read struct {
	Claim
	At     Place
	Length int
}

func (m Read) encode(b []byte) ([]byte, Type, uint8) {
	return appendFixed(b, m.Claim, m.At, uint32(m.Length)), TypeRead, 0
}

func decodeRead(_ uint8, p []byte) (Message, error) {
	m, length := Read{}, uint32(0)
	decodeFixed(p, &m.Claim, &m.At, &length)
	if m.Length = int(length); m.Length < 1 || m.Length > PieceMax {
		return nil, fmt.Errorf("%w: %d bytes to be read; want 1 to %d", content.ErrCorrupt, m.Length, PieceMax)
	}
	return m, m.At.check()
}

// Cut takes away what a holder has behind a place, of earlier epochs: it was never acknowledged, and does not
// count. The place is the end of the entry Seq, or number 0, which is before all.
type Cut struct {
	Claim
	At  Place
	Seq uint64
}

func (m Cut) encode(b []byte) ([]byte, Type, uint8) { return appendFixed(b, m), TypeCut, 0 }

func decodeCut(_ uint8, p []byte) (Message, error) {
	var m Cut
	decodeFixed(p, &m)
	return m, m.At.check()
}

// Drop says that the volume's record has all up to Base, or with All that this holder is
// none of the volume's any more.
type Drop struct {
	Claim
	Base content.Position
	All  bool
}

func (m Drop) encode(b []byte) (p []byte, t Type, flags uint8) {
	if m.All {
		flags = dropAll
	}
	return appendFixed(b, m.Claim, m.Base), TypeDrop, flags
}

func decodeDrop(flags uint8, p []byte) (Message, error) {
	m := Drop{All: flags&dropAll != 0}
	decodeFixed(p, &m.Claim, &m.Base)
	return m, nil
}

// Status asks what a holder has: a Held. Any claim may.
type Status struct{ Claim }

func (m Status) encode(b []byte) ([]byte, Type, uint8) { return appendFixed(b, m), TypeStatus, 0 }

func decodeStatus(_ uint8, p []byte) (Message, error) {
	var m Status
	decodeFixed(p, &m)
	return m, nil
}

// Held says to whom a holder has promised itself, for how long that one has said nothing
// to it, to the millisecond, and what it has, durable: all from Base on, in order, of each
// segment the first Bytes, up to the entry Through. Their sums are not known.
type Held struct {
	Claim
	Base     content.Position
	Quiet    time.Duration
	Segments []content.SegmentRef
}

// End is where what is held ends.
func (m Held) End() content.Position {
	if n := len(m.Segments); n > 0 {
		return m.Segments[n-1].Through
	}
	return m.Base
}

func (m Held) encode(b []byte) ([]byte, Type, uint8) {
	b = appendFixed(b, m.Claim, m.Base, m.Quiet.Milliseconds())
	for _, s := range m.Segments {
		b = appendFixed(b, s.Volume, s.Epoch, s.After, s.Through, s.Bytes)
	}
	return b, TypeHeld, 0
}

func decodeHeld(_ uint8, p []byte) (Message, error) {
	m, quiet := Held{}, uint64(0)
	p = decodeFixed(p, &m.Claim, &m.Base, &quiet)
	if len(p)%heldSegmentSize != 0 || quiet > quietMax {
		return nil, fmt.Errorf("%w: %d bytes of segments, and quiet for %d ms", content.ErrCorrupt, len(p), quiet)
	}
	m.Quiet = time.Duration(quiet) * time.Millisecond
	for len(p) > 0 {
		var s content.SegmentRef
		if p = decodeFixed(p, &s.Volume, &s.Epoch, &s.After, &s.Through, &s.Bytes); s.Bytes < 0 {
			return nil, fmt.Errorf("%w: segment of %d bytes", content.ErrCorrupt, s.Bytes)
		}
		m.Segments = append(m.Segments, s)
	}
	return m, nil
}
