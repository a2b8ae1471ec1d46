package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// Role says what a frame is.
type Role uint8

// The roles of frames.
const (
	RoleChunk    Role = 1
	RoleNode     Role = 2
	RolePage     Role = 3
	RoleRoot     Role = 4
	RoleManifest Role = 5
)

// Directory lists the frames of a pack.
type Directory struct {
	Pack ID
	// Moved is the pack that took over the frames of this one, or "".
	Moved ID
	// Entries stand by rising offset, one frame behind the other.
	Entries []Entry
	// Signature is who vouches for Entries, as trust.Verifier.OpenPack reads it; a
	// claim, or empty.
	Signature []byte
}

// Encode returns the entries as they stand in the pack.
func (d *Directory) Encode() []byte {
	b := make([]byte, 0, len(d.Entries)*EntrySize)
	for _, e := range d.Entries {
		b = AppendEntry(b, e)
	}
	return b
}

// Entry is one frame of a directory.
type Entry struct {
	Extent
	Role Role
}

// Find returns the frame of an object.
func (d *Directory) Find(id content.CID) (Entry, bool) {
	for _, e := range d.Entries {
		if e.CID == id {
			return e, true
		}
	}
	return Entry{}, false
}

// AppendEntry appends the encoded form of e.
func AppendEntry(b []byte, e Entry) []byte {
	b = append(b, e.CID[:]...)
	b = binary.BigEndian.AppendUint32(b, e.Offset)
	b = binary.BigEndian.AppendUint32(b, e.Length)
	b = binary.BigEndian.AppendUint32(b, e.Raw)
	return append(b, byte(e.Codec), e.Key, byte(e.Role), 0)
}

// DecodeEntry reads one entry, EntrySize bytes of the directory of pack id.
func DecodeEntry(id ID, b []byte) (Entry, error) {
	e := Entry{
		Extent: Extent{content.CID(b[:content.CIDSize]), Location{
			Pack:   id,
			Offset: binary.BigEndian.Uint32(b[32:]),
			Length: binary.BigEndian.Uint32(b[36:]),
			Raw:    binary.BigEndian.Uint32(b[40:]),
			Codec:  Codec(b[44]),
			Key:    b[45],
		}},
		Role: Role(b[46]),
	}
	if e.CID.IsHole() || e.Role < RoleChunk || e.Role > RoleManifest || b[47] != 0 {
		return Entry{}, fmt.Errorf("%w: frame %s of role %d", content.ErrCorrupt, e.CID.Short(), e.Role)
	}
	if limit := e.Role.sizeMax(); e.Raw > limit {
		return Entry{}, fmt.Errorf("%w: frame of %d raw bytes, the limit is %d", content.ErrCorrupt, e.Raw, limit)
	}
	return e, e.Check()
}

// sizeMax bounds the raw length of a frame, in bytes.
func (r Role) sizeMax() uint32 {
	if r == RoleManifest {
		return ManifestSizeMax
	}
	return FrameSizeMax
}

// decodeDirectory reads the directory of pack id, which ends at offset end; the
// frames must fill the pack from the header on, without gaps.
func decodeDirectory(id ID, b []byte, end uint32) ([]Entry, error) {
	if len(b)%EntrySize != 0 {
		return nil, fmt.Errorf("directory: %w: %d bytes", content.ErrCorrupt, len(b))
	}
	entries := make([]Entry, 0, len(b)/EntrySize)
	next := uint32(headerSize)
	for ; len(b) > 0; b = b[EntrySize:] {
		e, err := DecodeEntry(id, b[:EntrySize])
		if err != nil {
			return nil, fmt.Errorf("directory, entry %d: %w", len(entries), err)
		}
		if e.Offset != next {
			return nil, fmt.Errorf("directory, entry %d: %w: frame at %d, want %d", len(entries), content.ErrCorrupt, e.Offset, next)
		}
		next = e.End()
		entries = append(entries, e)
	}
	if next != end {
		return nil, fmt.Errorf("directory: %w: frames end at %d, want %d", content.ErrCorrupt, next, end)
	}
	return entries, nil
}
