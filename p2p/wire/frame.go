package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Version is the version of the protocol described in the package comment.
const Version = 1

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

	typeEnd
)

// HeaderSize is the length of a frame's header, in bytes.
const HeaderSize = 10

const (
	indexesSizeMax = 2 + IndexesMax*2*binary.MaxVarintLen32
	helloSize      = len(helloMagic) + 6
	wantSize       = content.CIDSize + 2
)

// Header is the header of a frame.
type Header struct {
	Type   Type
	Flags  uint8
	ID     uint32
	Length int // of the payload, in bytes
}

// bounds says which payload lengths and flags each type may have.
type bounds struct {
	min, max int
	flags    uint8
}

func (t Type) bounds() (bounds, bool) {
	switch t {
	case TypeHello:
		return bounds{helloSize, helloSize + ChainSizeMax, 0}, true
	case TypeWant:
		return bounds{wantSize + 2, wantSize + indexesSizeMax, wantFetch | wantPassed}, true
	case TypeData:
		return bounds{DataSize, DataSize + BodySizeMax + PageSizeMax, dataAck}, true
	case TypeAbsent:
		return bounds{2, indexesSizeMax, absentNowhere}, true
	case TypeQueued, TypeAck:
		return bounds{4, 4, 0}, true
	case TypeCancel, TypeProgress, TypeUnknown:
		return bounds{}, true
	case TypeRefer:
		return bounds{1, PeerIDMax, 0}, true
	case TypeIntroduce:
		return bounds{1, EnvelopeSizeMax, 0}, true
	case TypeSubscribe:
		return bounds{content.CIDSize, content.CIDSize, 0}, true
	case TypeBitmap:
		return bounds{0, BitmapPartMax, bitmapLast}, true
	case TypeCall:
		return bounds{2, 1 + MethodMax + CallSizeMax, 0}, true
	case TypeAnswer:
		return bounds{0, CallSizeMax, 0}, true
	case TypeError:
		return bounds{1, 1 + TextMax, 0}, true
	}
	return bounds{}, false
}

// Append appends the encoded header.
func (h Header) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(h.Length))
	b = append(b, byte(h.Type), h.Flags)
	return binary.BigEndian.AppendUint32(b, h.ID)
}

// ParseHeader reads a header and refuses, with ErrCorrupt, a type, flag or length
// that no version 1 frame has: whoever reads on may allocate Length bytes.
func ParseHeader(b [HeaderSize]byte) (Header, error) {
	h := Header{Type: Type(b[4]), Flags: b[5], ID: binary.BigEndian.Uint32(b[6:])}
	length := binary.BigEndian.Uint32(b[:])
	limits, ok := h.Type.bounds()
	switch {
	case !ok:
		return Header{}, fmt.Errorf("frame: %w: unknown type %d", content.ErrCorrupt, h.Type)
	case h.Flags&^limits.flags != 0:
		return Header{}, fmt.Errorf("frame of type %d: %w: unknown flags %#x", h.Type, content.ErrCorrupt, h.Flags)
	case uint64(length) < uint64(limits.min) || uint64(length) > uint64(limits.max):
		return Header{}, fmt.Errorf("frame of type %d: %w: %d bytes; want %d to %d", h.Type, content.ErrCorrupt, length, limits.min, limits.max)
	}
	h.Length = int(length)
	return h, nil
}

// Message is what a frame says. Data is not one: its bytes are written and read
// apart from its head, so that they are not copied.
type Message interface {
	frameType() Type
	flags() uint8
	appendTo(b []byte) []byte
}

// Append appends the whole frame of m. The limits of this package are the
// caller's to keep: Append panics on a message that no peer would accept.
func Append(b []byte, id uint32, m Message) []byte {
	start := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = m.appendTo(b)
	h := Header{Type: m.frameType(), Flags: m.flags(), ID: id, Length: len(b) - start - HeaderSize}
	if limits, _ := h.Type.bounds(); h.Length < limits.min || h.Length > limits.max {
		panic(fmt.Sprintf("wire: frame of type %d with %d bytes; want %d to %d", h.Type, h.Length, limits.min, limits.max))
	}
	h.Append(b[:start])
	return b
}

// Decode reads the payload of any frame but Data, which belongs to the header h.
// What it returns keeps parts of payload. Anything but the one encoding of a
// valid message is ErrCorrupt.
func Decode(h Header, payload []byte) (Message, error) {
	m, err := decode(h, payload)
	if err != nil {
		return nil, fmt.Errorf("frame of type %d: %w", h.Type, err)
	}
	return m, nil
}

func decode(h Header, p []byte) (Message, error) {
	if len(p) != h.Length {
		panic(fmt.Sprintf("wire: %d bytes of payload, the header says %d", len(p), h.Length))
	}
	switch h.Type {
	case TypeHello:
		return decodeHello(p)
	case TypeWant:
		return decodeWant(h.Flags, p)
	case TypeCancel:
		return Cancel{}, nil
	case TypeAbsent:
		indexes, err := decodeIndexes(p)
		return Absent{indexes, h.Flags&absentNowhere != 0}, err
	case TypeQueued:
		return Queued{binary.BigEndian.Uint32(p)}, nil
	case TypeProgress:
		return Progress{}, nil
	case TypeRefer:
		return Refer{p}, nil
	case TypeUnknown:
		return Unknown{}, nil
	case TypeIntroduce:
		return Introduce{p}, nil
	case TypeSubscribe:
		return Subscribe{content.CID(p)}, nil
	case TypeBitmap:
		return Bitmap{h.Flags&bitmapLast != 0, p}, nil
	case TypeCall:
		return decodeCall(p)
	case TypeAnswer:
		return Answer{p}, nil
	case TypeError:
		return decodeError(p)
	case TypeAck:
		return Ack{binary.BigEndian.Uint32(p)}, nil
	}
	return nil, fmt.Errorf("%w: not a message", content.ErrCorrupt)
}
