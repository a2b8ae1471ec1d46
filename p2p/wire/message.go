package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

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
	// LaneJournal carries what volumes have written to its holders: a flush waits behind
	// nothing else.
	LaneJournal

	// Lanes is their number.
	Lanes = int(LaneJournal) + 1
)

const helloMagic = "grange-x"

// Hello is the first frame of each direction of a stream.
type Hello struct {
	Lane Lane
	// Chain is the sender's encoded certificate chain; empty for a stranger.
	Chain []byte
}

func (m Hello) encode(b []byte) ([]byte, Type, uint8) {
	b = append(append(b, helloMagic...), Version, byte(m.Lane))
	return append(b, m.Chain...), TypeHello, 0
}

func decodeHello(_ uint8, p []byte) (Message, error) {
	n := len(helloMagic)
	if string(p[:n]) != helloMagic || p[n] != Version || int(p[n+1]) >= Lanes {
		return nil, fmt.Errorf("%w: magic %.8q, version %d, lane %d", content.ErrCorrupt, p[:n], p[n], p[n+1])
	}
	return Hello{Lane(p[n+1]), p[helloSize:]}, nil
}

// Priority orders requests at both ends of a transfer.
type Priority uint8

// The priorities, the most urgent last.
const (
	// PrioritySeed serves others' background copies; strangers get no more.
	PrioritySeed Priority = iota
	// PriorityPrefetch warms content that nobody waits for yet.
	PriorityPrefetch
	// PriorityReadahead is what a guest will probably read next.
	PriorityReadahead
	// PriorityGuest has a guest blocked on it.
	PriorityGuest

	// Priorities is their number.
	Priorities = int(PriorityGuest) + 1
)

// String returns the name of the priority.
func (p Priority) String() string {
	return [Priorities]string{"seed", "prefetch", "readahead", "guest"}[p]
}

// Want asks for objects under a root.
type Want struct {
	Root content.CID
	// Level is 0 for chunks, 1 to content.LevelMax for map nodes with locator pages.
	Level int
	// Indexes are distinct and rising, 1 to IndexesMax of them.
	Indexes  []uint64
	Priority Priority
	// Fetch asks the peer to bring in what it lacks, as the lead of a run does.
	Fetch bool
	// Passed says that the request was passed on once, and must not be again.
	Passed bool
	// NoOrigin says that nothing is to be read at the origin for it.
	NoOrigin bool
	// Trace is what it is done for, where somebody traces that.
	Trace Trace
}

// Trace names a span of a trace, as OpenTelemetry does: the trace (16 bytes), then the span
// in it (8); zero for none.
type Trace [24]byte

const (
	wantFetch = 1 << iota
	wantPassed
	wantNoOrigin
	wantTraced
)

func (m Want) encode(b []byte) (p []byte, t Type, flags uint8) {
	if m.Fetch {
		flags |= wantFetch
	}
	if m.Passed {
		flags |= wantPassed
	}
	if m.NoOrigin {
		flags |= wantNoOrigin
	}
	b = append(append(b, m.Root[:]...), byte(m.Level), byte(m.Priority))
	if m.Trace != (Trace{}) {
		flags |= wantTraced
		b = append(b, m.Trace[:]...)
	}
	return appendIndexes(b, m.Indexes), TypeWant, flags
}

func decodeWant(flags uint8, p []byte) (Message, error) {
	m := Want{
		Root: content.CID(p[:content.CIDSize]), Level: int(p[content.CIDSize]), Priority: Priority(p[content.CIDSize+1]),
		Fetch: flags&wantFetch != 0, Passed: flags&wantPassed != 0, NoOrigin: flags&wantNoOrigin != 0,
	}
	if m.Level > content.LevelMax || m.Priority > PriorityGuest {
		return nil, fmt.Errorf("%w: level %d, priority %d; the limits are %d and %d", content.ErrCorrupt, m.Level, m.Priority, content.LevelMax, PriorityGuest)
	}
	p = p[wantSize:]
	if flags&wantTraced != 0 {
		if copy(m.Trace[:], p); len(p) < len(m.Trace)+2 || m.Trace == (Trace{}) {
			return nil, fmt.Errorf("%w: the trace of a request is cut short, or none", content.ErrCorrupt)
		}
		p = p[len(m.Trace):]
	}
	var err error
	m.Indexes, err = decodeIndexes(p)
	return m, err
}

// Cancel ends a request early: the asker wants no more of it.
type Cancel struct{}

func (Cancel) encode(b []byte) ([]byte, Type, uint8) { return b, TypeCancel, 0 }

// Absent says that the sender has none of these objects for the asker; Nowhere that the
// origin has told it that they are gone, or damaged there.
type Absent struct {
	Indexes []uint64
	Nowhere bool
}

const absentNowhere = 1

func (m Absent) encode(b []byte) ([]byte, Type, uint8) {
	var flags uint8
	if m.Nowhere {
		flags = absentNowhere
	}
	return appendIndexes(b, m.Indexes), TypeAbsent, flags
}

func decodeAbsent(flags uint8, p []byte) (Message, error) {
	indexes, err := decodeIndexes(p)
	return Absent{indexes, flags&absentNowhere != 0}, err
}

// Queued says that the request waits, behind Position others.
type Queued struct{ Position uint32 }

func (m Queued) encode(b []byte) ([]byte, Type, uint8) {
	return binary.BigEndian.AppendUint32(b, m.Position), TypeQueued, 0
}

// Progress says that the request is being worked on.
type Progress struct{}

func (Progress) encode(b []byte) ([]byte, Type, uint8) { return b, TypeProgress, 0 }

// Refer ends a Want: that peer has the rest. Addrs are where it is to be found, for one that
// may not know it: AddrsMax at most, AddrMax bytes each.
type Refer struct {
	Peer  peer.ID
	Addrs []ma.Multiaddr
}

func (m Refer) encode(b []byte) ([]byte, Type, uint8) {
	b = append(append(b, byte(len(m.Peer))), m.Peer...)
	for _, a := range m.Addrs {
		b = append(append(b, byte(len(a.Bytes()))), a.Bytes()...)
	}
	return b, TypeRefer, 0
}

func decodeRefer(_ uint8, p []byte) (Message, error) {
	var parts [][]byte
	for len(p) > 0 {
		n := 1 + int(p[0])
		if n > len(p) || len(parts) > AddrsMax {
			return nil, fmt.Errorf("%w: an address ends behind its frame, or there are more than %d", content.ErrCorrupt, AddrsMax)
		}
		parts, p = append(parts, p[1:n]), p[n:]
	}
	id, err := peer.IDFromBytes(parts[0])
	if err != nil {
		return nil, fmt.Errorf("%w: peer ID: %w", content.ErrCorrupt, err)
	}
	m := Refer{Peer: id}
	for _, part := range parts[1:] {
		a, err := ma.NewMultiaddrBytes(part)
		if err != nil {
			return nil, fmt.Errorf("%w: address of %s: %w", content.ErrCorrupt, id, err)
		}
		m.Addrs = append(m.Addrs, a)
	}
	return m, nil
}

// Unknown ends the request: the root is unknown, or its scope does not admit the asker,
// one answer for both. With the record's envelope it introduces it and asks again.
type Unknown struct{}

func (Unknown) encode(b []byte) ([]byte, Type, uint8) { return b, TypeUnknown, 0 }

// Introduce carries the envelope of a record.
type Introduce struct{ Envelope []byte }

func (m Introduce) encode(b []byte) ([]byte, Type, uint8) {
	return append(b, m.Envelope...), TypeIntroduce, 0
}

// Subscribe asks for the bitmap of a root and for what is added to it.
type Subscribe struct{ Root content.CID }

func (m Subscribe) encode(b []byte) ([]byte, Type, uint8) {
	return append(b, m.Root[:]...), TypeSubscribe, 0
}

// Bitmap is part of an encoded bitmap: a snapshot first, additions later.
type Bitmap struct {
	Last bool
	Part []byte
}

const bitmapLast = 1

func (m Bitmap) encode(b []byte) (p []byte, t Type, flags uint8) {
	if m.Last {
		flags = bitmapLast
	}
	return append(b, m.Part...), TypeBitmap, flags
}

// Call asks for the answer of a method, a name of 1 to MethodMax bytes.
type Call struct {
	Method string
	Body   []byte
}

func (m Call) encode(b []byte) ([]byte, Type, uint8) {
	return append(append(append(b, byte(len(m.Method))), m.Method...), m.Body...), TypeCall, 0
}

func decodeCall(_ uint8, p []byte) (Message, error) {
	n := int(p[0])
	if n == 0 || n > MethodMax || 1+n > len(p) || len(p)-1-n > CallSizeMax {
		return nil, fmt.Errorf("%w: method of %d bytes in a payload of %d", content.ErrCorrupt, n, len(p))
	}
	return Call{string(p[1 : 1+n]), p[1+n:]}, nil
}

// Answer ends a Call or an Introduce that succeeded.
type Answer struct{ Body []byte }

func (m Answer) encode(b []byte) ([]byte, Type, uint8) {
	return append(b, m.Body...), TypeAnswer, 0
}

// Ack tells the sender of Data how many bytes of such frames, headers included,
// have arrived on the stream since the last Ack.
type Ack struct{ Bytes uint32 }

func (m Ack) encode(b []byte) ([]byte, Type, uint8) {
	return binary.BigEndian.AppendUint32(b, m.Bytes), TypeAck, 0
}

// Kind is the category of an Error frame.
type Kind uint8

// The kinds. Those up to KindClosed are the sentinels of package content.
const (
	KindOther Kind = iota
	KindNotFound
	KindExists
	KindConflict
	KindFenced
	KindCorrupt
	KindUnavailable
	KindForbidden
	KindInvalid
	KindReadOnly
	KindNoSpace
	KindClosed
	// KindBusy: the asker's budget at the sender is used up.
	KindBusy
	// KindCanceled ends a request that the asker canceled.
	KindCanceled

	kindEnd
)

// Error ends a request that failed.
type Error struct {
	Kind Kind
	Text string
}

func (m Error) encode(b []byte) ([]byte, Type, uint8) {
	return append(append(b, byte(m.Kind)), m.Text...), TypeError, 0
}

func decodeError(_ uint8, p []byte) (Message, error) {
	if p[0] >= byte(kindEnd) || !utf8.Valid(p[1:]) {
		return nil, fmt.Errorf("%w: kind %d, text %.40q", content.ErrCorrupt, p[0], p[1:])
	}
	return Error{Kind(p[0]), string(p[1:])}, nil
}

// Sentinel returns the error of package content that the kind stands for, nil if none.
func (k Kind) Sentinel() error {
	return [kindEnd]error{
		KindNotFound: content.ErrNotFound, KindExists: content.ErrExists, KindConflict: content.ErrConflict, KindFenced: content.ErrFenced,
		KindCorrupt: content.ErrCorrupt, KindUnavailable: content.ErrUnavailable, KindForbidden: content.ErrForbidden, KindInvalid: content.ErrInvalid,
		KindReadOnly: content.ErrReadOnly, KindNoSpace: content.ErrNoSpace, KindClosed: content.ErrClosed, KindBusy: content.ErrUnavailable,
	}[k]
}

// ErrorOf returns the frame that tells a peer of err, cut at TextMax and in UTF-8 only.
func ErrorOf(err error) Error {
	text := err.Error()
	m := Error{Text: strings.ToValidUTF8(text[:min(len(text), TextMax)], "")}
	for k := KindNotFound; k <= KindClosed; k++ {
		if errors.Is(err, k.Sentinel()) {
			m.Kind = k
			break
		}
	}
	return m
}
