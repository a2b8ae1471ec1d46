package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// Lane says what a stream is for. Requests of one lane don't wait for another's.
type Lane uint8

// The lanes.
const (
	// LaneControl carries calls, introductions and bitmaps.
	LaneControl Lane = iota
	// LaneUrgent carries what a guest is blocked on.
	LaneUrgent
	// LaneBulk carries the rest; a member may open several.
	LaneBulk

	// Lanes is their number.
	Lanes = int(LaneBulk) + 1
)

const helloMagic = "grange-x"

// Hello is the first frame of each direction of a stream.
type Hello struct {
	Lane Lane
	// Features is a set of optional abilities. Version 1 has none; a reader
	// ignores those that it does not know.
	Features uint32
	// Chain is the sender's encoded certificate chain; empty for a stranger.
	Chain []byte
}

func (Hello) frameType() Type { return TypeHello }
func (Hello) flags() uint8    { return 0 }

func (m Hello) appendTo(b []byte) []byte {
	b = append(append(b, helloMagic...), Version, byte(m.Lane))
	return append(binary.BigEndian.AppendUint32(b, m.Features), m.Chain...)
}

func decodeHello(p []byte) (Message, error) {
	n := len(helloMagic)
	if string(p[:n]) != helloMagic || p[n] != Version || int(p[n+1]) >= Lanes {
		return nil, fmt.Errorf("%w: magic %.8q, version %d, lane %d", content.ErrCorrupt, p[:n], p[n], p[n+1])
	}
	return Hello{Lane(p[n+1]), binary.BigEndian.Uint32(p[n+2:]), p[helloSize:]}, nil
}

// Want asks for objects under a root.
type Want struct {
	Root content.CID
	// Level is 0 for chunks, 1 to content.LevelMax for map nodes and their pages.
	Level int
	// Priority is above 0 for all that is more urgent than seeding.
	Priority uint8
	// Fetch asks to bring in what is lacking, Passed says that this Want was
	// passed on already.
	Fetch, Passed bool
	// Indexes rise; 1 to IndexesMax of them.
	Indexes []uint64
}

// PriorityMax is the most urgent priority: a guest is blocked.
const PriorityMax = 3

const (
	wantFetch = 1 << iota
	wantPassed
)

func (Want) frameType() Type { return TypeWant }

func (m Want) flags() (f uint8) {
	if m.Fetch {
		f |= wantFetch
	}
	if m.Passed {
		f |= wantPassed
	}
	return f
}

func (m Want) appendTo(b []byte) []byte {
	b = append(append(b, m.Root[:]...), byte(m.Level), m.Priority)
	return appendIndexes(b, m.Indexes)
}

func decodeWant(flags uint8, p []byte) (Message, error) {
	m := Want{
		Root: content.CID(p[:content.CIDSize]), Level: int(p[content.CIDSize]), Priority: p[content.CIDSize+1],
		Fetch: flags&wantFetch != 0, Passed: flags&wantPassed != 0,
	}
	if m.Level > content.LevelMax || m.Priority > PriorityMax {
		return nil, fmt.Errorf("%w: level %d, priority %d; the limits are %d and %d", content.ErrCorrupt, m.Level, m.Priority, content.LevelMax, PriorityMax)
	}
	var err error
	m.Indexes, err = decodeIndexes(p[wantSize:])
	return m, err
}

// Cancel ends a request early: the asker wants no more of it.
type Cancel struct{}

func (Cancel) frameType() Type          { return TypeCancel }
func (Cancel) flags() uint8             { return 0 }
func (Cancel) appendTo(b []byte) []byte { return b }

// Absent answers indexes of which the sender has nothing for the asker. Nowhere says
// that the origin has told the sender that they are gone, or damaged there.
type Absent struct {
	Indexes []uint64
	Nowhere bool
}

const absentNowhere = 1

func (Absent) frameType() Type { return TypeAbsent }

func (m Absent) flags() uint8 {
	if m.Nowhere {
		return absentNowhere
	}
	return 0
}

func (m Absent) appendTo(b []byte) []byte { return appendIndexes(b, m.Indexes) }

// Queued says that the request waits behind Position others.
type Queued struct{ Position uint32 }

func (Queued) frameType() Type { return TypeQueued }
func (Queued) flags() uint8    { return 0 }

func (m Queued) appendTo(b []byte) []byte { return binary.BigEndian.AppendUint32(b, m.Position) }

// Progress says that the request is being worked on.
type Progress struct{}

func (Progress) frameType() Type          { return TypeProgress }
func (Progress) flags() uint8             { return 0 }
func (Progress) appendTo(b []byte) []byte { return b }

// Refer ends a Want: the peer of that binary id has the rest.
type Refer struct{ Peer []byte }

func (Refer) frameType() Type            { return TypeRefer }
func (Refer) flags() uint8               { return 0 }
func (m Refer) appendTo(b []byte) []byte { return append(b, m.Peer...) }

// Unknown ends a request for a root that is not known here, or not to the asker.
type Unknown struct{}

func (Unknown) frameType() Type          { return TypeUnknown }
func (Unknown) flags() uint8             { return 0 }
func (Unknown) appendTo(b []byte) []byte { return b }

// Introduce carries the envelope of a record.
type Introduce struct{ Envelope []byte }

func (Introduce) frameType() Type            { return TypeIntroduce }
func (Introduce) flags() uint8               { return 0 }
func (m Introduce) appendTo(b []byte) []byte { return append(b, m.Envelope...) }

// Subscribe asks for the bitmap of a root and for what is added to it.
type Subscribe struct{ Root content.CID }

func (Subscribe) frameType() Type            { return TypeSubscribe }
func (Subscribe) flags() uint8               { return 0 }
func (m Subscribe) appendTo(b []byte) []byte { return append(b, m.Root[:]...) }

// Bitmap is part of an encoded bitmap: a snapshot first, additions later.
type Bitmap struct {
	Last bool
	Part []byte
}

const bitmapLast = 1

func (Bitmap) frameType() Type { return TypeBitmap }

func (m Bitmap) flags() uint8 {
	if m.Last {
		return bitmapLast
	}
	return 0
}

func (m Bitmap) appendTo(b []byte) []byte { return append(b, m.Part...) }

// Call asks for the answer of a method, a name of 1 to MethodMax bytes.
type Call struct {
	Method string
	Body   []byte
}

func (Call) frameType() Type { return TypeCall }
func (Call) flags() uint8    { return 0 }

func (m Call) appendTo(b []byte) []byte {
	return append(append(append(b, byte(len(m.Method))), m.Method...), m.Body...)
}

func decodeCall(p []byte) (Message, error) {
	n := int(p[0])
	if n == 0 || n > MethodMax || 1+n > len(p) || len(p)-1-n > CallSizeMax {
		return nil, fmt.Errorf("%w: method of %d bytes in a payload of %d", content.ErrCorrupt, n, len(p))
	}
	return Call{string(p[1 : 1+n]), p[1+n:]}, nil
}

// Answer ends a Call or an Introduce that succeeded.
type Answer struct{ Body []byte }

func (Answer) frameType() Type            { return TypeAnswer }
func (Answer) flags() uint8               { return 0 }
func (m Answer) appendTo(b []byte) []byte { return append(b, m.Body...) }

// Ack tells the sender of Data how many bytes of such frames, headers included,
// have arrived on the stream since the last Ack.
type Ack struct{ Bytes uint32 }

func (Ack) frameType() Type            { return TypeAck }
func (Ack) flags() uint8               { return 0 }
func (m Ack) appendTo(b []byte) []byte { return binary.BigEndian.AppendUint32(b, m.Bytes) }
