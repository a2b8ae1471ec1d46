package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Version is the version of the protocol described in the package comment.
const Version = 3

// ProtocolID returns the name under which members of a mesh open streams.
func ProtocolID(mesh trust.PublicKey) string {
	return fmt.Sprintf("/grange/%s/exchange/%d", mesh, Version)
}

// Type is the type of a frame.
type Type uint8

// The types of frames.
const (
	TypeHello Type = iota + 1
	TypeWant
	TypeCancel
	TypeData
	TypeAbsent
	TypeQueued
	TypeProgress
	TypeRefer
	TypeUnknown
	TypeIntroduce
	TypeSubscribe
	TypeBitmap
	TypeCall
	TypeAnswer
	TypeError
	TypeAck
	TypePromise
	TypeExtend
	TypeRead
	TypeCut
	TypeDrop
	TypeStatus
	TypeHeld

	typeEnd
)

// HeaderSize is the length of a frame's header, in bytes.
const HeaderSize = 10

const (
	indexesSizeMax = 2 + IndexesMax*2*binary.MaxVarintLen32
	helloSize      = len(helloMagic) + 2
	wantSize       = content.CIDSize + 2
)

// Header is the header of a frame.
type Header struct {
	Type   Type
	Flags  uint8
	ID     uint32
	Length int // of the payload, in bytes
}

// format is what the frames of a type may be: their payloads' lengths and flags, and what
// such a payload says; nil for Data, whose bytes go apart.
type format struct {
	min, max int
	flags    uint8
	decode   func(flags uint8, p []byte) (Message, error)
}

func (t Type) format() (f format, ok bool) {
	const placed = claimSize + placeSize
	all := [typeEnd]format{
		TypeHello:     {helloSize, helloSize + ChainSizeMax, 0, decodeHello},
		TypeWant:      {wantSize + 2, wantSize + len(Trace{}) + indexesSizeMax, wantFetch | wantPassed | wantNoOrigin | wantTraced, decodeWant},
		TypeCancel:    {decode: func(uint8, []byte) (Message, error) { return Cancel{}, nil }},
		TypeData:      {DataSize, DataSize + BodySizeMax + PageSizeMax, dataAck, nil},
		TypeAbsent:    {2, indexesSizeMax, absentNowhere, decodeAbsent},
		TypeQueued:    {4, 4, 0, func(_ uint8, p []byte) (Message, error) { return Queued{binary.BigEndian.Uint32(p)}, nil }},
		TypeProgress:  {decode: func(uint8, []byte) (Message, error) { return Progress{}, nil }},
		TypeRefer:     {2, 1 + PeerIDMax + AddrsMax*(1+AddrMax), 0, decodeRefer},
		TypeUnknown:   {decode: func(uint8, []byte) (Message, error) { return Unknown{}, nil }},
		TypeIntroduce: {1, EnvelopeSizeMax, 0, func(_ uint8, p []byte) (Message, error) { return Introduce{p}, nil }},
		TypeSubscribe: {content.CIDSize, content.CIDSize, 0, func(_ uint8, p []byte) (Message, error) { return Subscribe{content.CID(p)}, nil }},
		TypeBitmap:    {0, BitmapPartMax, bitmapLast, func(flags uint8, p []byte) (Message, error) { return Bitmap{flags&bitmapLast != 0, p}, nil }},
		TypeCall:      {2, 1 + MethodMax + CallSizeMax, 0, decodeCall},
		TypeAnswer:    {0, CallSizeMax, 0, func(_ uint8, p []byte) (Message, error) { return Answer{p}, nil }},
		TypeError:     {1, 1 + TextMax, 0, decodeError},
		TypeAck:       {4, 4, 0, func(_ uint8, p []byte) (Message, error) { return Ack{binary.BigEndian.Uint32(p)}, nil }},
		TypePromise:   {promiseSize, promiseSize + content.NameMax + AncestorsMax*idSize, promiseBegin, decodePromise},
		TypeExtend:    {extendSize + 1, extendSize + PieceMax, 0, decodeExtend},
		TypeRead:      {placed + 4, placed + 4, 0, decodeRead},
		TypeCut:       {placed + 8, placed + 8, 0, decodeCut},
		TypeDrop:      {claimSize + positionSize, claimSize + positionSize, dropAll, decodeDrop},
		TypeStatus:    {claimSize, claimSize, 0, decodeStatus},
		TypeHeld:      {heldSize, heldSize + SegmentsMax*heldSegmentSize, 0, decodeHeld},
	}
	if t < TypeHello || t >= typeEnd {
		return f, false
	}
	return all[t], true
}

// Append appends the encoded header.
func (h Header) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(h.Length))
	b = append(b, byte(h.Type), h.Flags)
	return binary.BigEndian.AppendUint32(b, h.ID)
}

// ParseHeader reads a header and refuses, with ErrCorrupt, a type, flag or length
// that no frame has: whoever reads on may allocate Length bytes.
func ParseHeader(b [HeaderSize]byte) (Header, error) {
	h := Header{Type: Type(b[4]), Flags: b[5], ID: binary.BigEndian.Uint32(b[6:])}
	length := binary.BigEndian.Uint32(b[:])
	l, ok := h.Type.format()
	switch {
	case !ok:
		return Header{}, fmt.Errorf("frame: %w: unknown type %d", content.ErrCorrupt, h.Type)
	case h.Flags&^l.flags != 0:
		return Header{}, fmt.Errorf("frame of type %d: %w: unknown flags %#x", h.Type, content.ErrCorrupt, h.Flags)
	case uint64(length) < uint64(l.min) || uint64(length) > uint64(l.max):
		return Header{}, fmt.Errorf("frame of type %d: %w: %d bytes; want %d to %d", h.Type, content.ErrCorrupt, length, l.min, l.max)
	}
	h.Length = int(length)
	return h, nil
}

// Message is what a frame says. Data is none: its bytes go apart, not to be copied.
type Message interface {
	// encode appends the payload to b, and returns the frame's type and flags too.
	encode(b []byte) (p []byte, t Type, flags uint8)
}

// Append appends the whole frame of m. The limits of this package are the
// caller's to keep: Append panics on a message that no peer would accept.
func Append(b []byte, id uint32, m Message) []byte {
	start := len(b)
	b, t, flags := m.encode(append(b, make([]byte, HeaderSize)...))
	h := Header{Type: t, Flags: flags, ID: id, Length: len(b) - start - HeaderSize}
	if l, _ := t.format(); h.Length < l.min || h.Length > l.max {
		panic(fmt.Sprintf("wire: frame of type %d with %d bytes; want %d to %d", t, h.Length, l.min, l.max))
	}
	h.Append(b[:start])
	return b
}

// Decode reads the payload of any frame but Data, which belongs to the header h, and
// keeps parts of it. Anything but the one encoding of a valid message is ErrCorrupt.
func Decode(h Header, payload []byte) (Message, error) {
	if len(payload) != h.Length {
		panic(fmt.Sprintf("wire: %d bytes of payload, the header says %d", len(payload), h.Length))
	}
	f, _ := h.Type.format()
	if f.decode == nil {
		return nil, fmt.Errorf("frame of type %d: %w: not a message", h.Type, content.ErrCorrupt)
	}
	m, err := f.decode(h.Flags, payload)
	if err != nil {
		return nil, fmt.Errorf("frame of type %d: %w", h.Type, err)
	}
	return m, nil
}

const (
	// IndexesMax is how many objects one Want asks for: those of one map node.
	IndexesMax = content.MapFanout
	// BodySizeMax bounds an object, in bytes: the largest chunk, map node or root.
	BodySizeMax = content.ChunkSizeMax
	// PageSizeMax bounds a locator page, in bytes: each of MapFanout entries in a
	// pack of its own, with room for the pack's name.
	PageSizeMax = 512 << 10
	// EnvelopeSizeMax bounds the envelope of an Introduce, in bytes.
	EnvelopeSizeMax = content.RecordSizeMax
	// CallSizeMax bounds a call's body and answer, in bytes: some hundred records.
	CallSizeMax = 1 << 20
	// MethodMax bounds the name of a call's method, in bytes.
	MethodMax = 64
	// TextMax bounds the text of an error, in bytes; what is over is cut.
	TextMax = 512
	// ChainSizeMax bounds an encoded chain, in bytes: three certificates of at most 600.
	ChainSizeMax = 4 << 10
	// PeerIDMax bounds a peer id, in bytes: an Ed25519 key's is 38 long, any other's 34.
	PeerIDMax = 64
	// AddrsMax bounds the addresses of a peer that is referred to, AddrMax the bytes of each:
	// one behind a relay has some hundred.
	AddrsMax, AddrMax = 4, 255
	// BitmapPartMax bounds one part of a bitmap, in bytes: calls go in between.
	BitmapPartMax = 64 << 10
	// IndexMax bounds an index: what a Bitmap can hold.
	IndexMax = 1<<32 - 1
)
