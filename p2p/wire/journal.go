package wire

import (
	"encoding/binary"
	"fmt"
	"math"
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

func (c Claim) append(b []byte) []byte {
	b = append(b, c.Volume[:]...)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, c.Epoch), c.Incarnation)
}

func decodeClaim(p []byte) (Claim, []byte) {
	return Claim{content.VolumeID(p[:idSize]), binary.BigEndian.Uint64(p[idSize:]), binary.BigEndian.Uint64(p[idSize+8:])}, p[claimSize:]
}

func (p Place) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, p.Epoch), p.Number)
	return binary.BigEndian.AppendUint64(b, uint64(p.Offset))
}

func appendPosition(b []byte, p content.Position) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, p.Number), p.Seq)
}

func decodePosition(p []byte) content.Position {
	return content.Position{Number: binary.BigEndian.Uint64(p), Seq: binary.BigEndian.Uint64(p[8:])}
}

func decodePlaced(p []byte) (Claim, Place, []byte, error) {
	c, p := decodeClaim(p)
	at := Place{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:]), int64(binary.BigEndian.Uint64(p[16:]))}
	if at.Offset < 0 {
		return c, at, nil, fmt.Errorf("%w: offset %d", content.ErrCorrupt, at.Offset)
	}
	return c, at, p[placeSize:], nil
}

// Promise asks a holder to take bytes of that claim only, and of no earlier one, from its
// answer on: a Held.
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
	b = binary.BigEndian.AppendUint64(appendPosition(m.append(b), m.Base), m.Whole)
	b = append(append(b, byte(len(m.Name))), m.Name...)
	for _, id := range m.Ancestors {
		b = append(b, id[:]...)
	}
	return b, TypePromise, flags
}

func decodePromise(flags uint8, p []byte) (Message, error) {
	c, p := decodeClaim(p)
	m := Promise{Claim: c, Base: decodePosition(p), Whole: binary.BigEndian.Uint64(p[positionSize:]), Begin: flags&promiseBegin != 0}
	n, rest := int(p[positionSize+8]), p[promiseSize-claimSize:]
	if n > content.NameMax || n > len(rest) || (len(rest)-n)%idSize != 0 || (len(rest)-n)/idSize > AncestorsMax {
		return nil, fmt.Errorf("%w: name of %d bytes and ancestors in %d", content.ErrCorrupt, n, len(rest))
	}
	m.Name = string(rest[:n])
	for rest = rest[n:]; len(rest) > 0; rest = rest[idSize:] {
		m.Ancestors = append(m.Ancestors, content.VolumeID(rest[:idSize]))
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
	b = binary.BigEndian.AppendUint64(m.At.append(m.append(b)), uint64(m.Before))
	return append(binary.BigEndian.AppendUint64(b, m.Seq), m.Bytes...), TypeExtend, 0
}

func decodeExtend(p []byte) (Message, error) {
	c, at, rest, err := decodePlaced(p)
	if err != nil {
		return nil, err
	}
	m := Extend{c, at, int64(binary.BigEndian.Uint64(rest)), binary.BigEndian.Uint64(rest[8:]), rest[16:]}
	if m.Before < 0 {
		return nil, fmt.Errorf("%w: segment of %d bytes", content.ErrCorrupt, m.Before)
	}
	return m, nil
}

// Read asks for bytes of a segment: an Answer with Length of them, 1 to PieceMax, or
// fewer where it ends.
type Read struct {
	Claim
	At     Place
	Length int
}

func (m Read) encode(b []byte) ([]byte, Type, uint8) {
	return binary.BigEndian.AppendUint32(m.At.append(m.append(b)), uint32(m.Length)), TypeRead, 0
}

func decodeRead(p []byte) (Message, error) {
	c, at, rest, err := decodePlaced(p)
	if err != nil {
		return nil, err
	}
	m := Read{c, at, int(binary.BigEndian.Uint32(rest))}
	if m.Length < 1 || m.Length > PieceMax {
		return nil, fmt.Errorf("%w: %d bytes to be read; want 1 to %d", content.ErrCorrupt, m.Length, PieceMax)
	}
	return m, nil
}

// Cut takes away what a holder has behind a place, of earlier epochs: it was never
// acknowledged, and does not count. The place is the end of the entry Seq, or number 0, which
// is before all.
type Cut struct {
	Claim
	At  Place
	Seq uint64
}

func (m Cut) encode(b []byte) ([]byte, Type, uint8) {
	return binary.BigEndian.AppendUint64(m.At.append(m.append(b)), m.Seq), TypeCut, 0
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
	return appendPosition(m.append(b), m.Base), TypeDrop, flags
}

// Status asks what a holder has: a Held. Any claim may.
type Status struct{ Claim }

func (m Status) encode(b []byte) ([]byte, Type, uint8) { return m.append(b), TypeStatus, 0 }

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
	b = binary.BigEndian.AppendUint64(appendPosition(m.append(b), m.Base), uint64(m.Quiet.Milliseconds()))
	for _, s := range m.Segments {
		b = appendPosition(binary.BigEndian.AppendUint64(append(b, s.Volume[:]...), s.Epoch), s.After)
		b = binary.BigEndian.AppendUint64(appendPosition(b, s.Through), uint64(s.Bytes))
	}
	return b, TypeHeld, 0
}

func decodeHeld(p []byte) (Message, error) {
	c, p := decodeClaim(p)
	m := Held{Claim: c, Base: decodePosition(p)}
	quiet := binary.BigEndian.Uint64(p[positionSize:])
	if p = p[positionSize+8:]; len(p)%heldSegmentSize != 0 || quiet > quietMax {
		return nil, fmt.Errorf("%w: %d bytes of segments, and quiet for %d ms", content.ErrCorrupt, len(p), quiet)
	}
	m.Quiet = time.Duration(quiet) * time.Millisecond
	for ; len(p) > 0; p = p[heldSegmentSize:] {
		s := content.SegmentRef{Volume: content.VolumeID(p[:idSize]), Epoch: binary.BigEndian.Uint64(p[idSize:]), After: decodePosition(p[idSize+8:])}
		rest := p[idSize+8+positionSize:]
		s.Through, s.Bytes = decodePosition(rest), int64(binary.BigEndian.Uint64(rest[positionSize:]))
		if s.Bytes < 0 {
			return nil, fmt.Errorf("%w: segment of %d bytes", content.ErrCorrupt, s.Bytes)
		}
		m.Segments = append(m.Segments, s)
	}
	return m, nil
}
