// Package pack turns chunks into pack objects in a bucket, and back.
//
// A pack is one object of about 32 MiB that holds many stored frames: chunks
// first, then what a reader needs to find them. The pack that ends an import or
// a fold closes with its metadata, in this order:
//
//	header | chunks … | node page | node page | … | root | manifest | directory | footer
//
// Map nodes stand bottom-up, each directly followed by its locator page, which
// says where the node's children lie. A page is content-addressed: the parent's
// page names it, the [Head] in the record names the top one. So a cold reader
// that holds a record needs three reads: the top node and page, the leaf node
// and page, the chunk.
//
// [Builder] writes packs, [Reader] reads them, [Index] knows what importers may
// reuse. Bytes leave this package as content.Verified only.
package pack

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/grangemesh/grange/origin/content"
)

// The layout of a pack. Numbers are big-endian.
//
//	offset  size  field
//	     0    16  magic "grange-pack/1", padded with zeros
//	    16     …  frames, one behind the other without gaps
//	     d  48*n  directory: n entries, by rising offset
//	 d+48n     s  signature of the directory, if any
//	     …   256  footer
//
// An entry of the directory:
//
//	 0    32  digest of the object
//	32     4  offset of the stored frame in the pack
//	36     4  length of the stored frame
//	40     4  length of the object
//	44     1  codec: 0 raw, 1 zstd
//	45     1  key, 0 is none
//	46     1  role: 1 chunk, 2 node, 3 page, 4 root, 5 manifest
//	47     1  zero
//
// The footer:
//
//	  0     8  magic "grfoot\x00\x02"; the last byte is the version
//	  8     2  flags: 1 moved
//	 10     2  zero
//	 12     4  entries n of the directory
//	 16     4  offset d of the directory
//	 20     4  length of the whole pack
//	 24     4  length s of the signature
//	 28     4  zero
//	 32    32  digest of the directory
//	 64     1  length of the next field, 0 unless moved
//	 65   183  ID of the pack that took over the frames, padded with zeros
//	248     4  CRC32C of the bytes before
//	252     4  magic "grpk"
//
// A pack without frames is a stub: what repacking leaves under the old name. It
// always says where the frames went.
//
// The signature is a member's word for the directory of this very pack (package
// trust, Signer.SealPack). Whoever only reads what a root names needs it not: each
// frame has its CID. It is for importers, who would refer to frames unread.
const (
	packMagic  = "grange-pack/1\x00\x00\x00"
	headerSize = 16

	// EntrySize is the length of an entry of the directory, in bytes.
	EntrySize = 48

	footerMagic = "grfoot\x00\x02"
	footerEnd   = "grpk"
	footerSize  = 256
	// SizeMin is what every pack is larger than.
	SizeMin = headerSize + footerSize

	footerMoved     = 64
	footerChecksum  = 248
	flagMoved       = 1
	movedSizeMax    = footerChecksum - footerMoved - 1
	footerFlagsMask = flagMoved
)

// Footer is the decoded end of a pack. Two packs with the same footer are the same.
type Footer struct {
	entries   uint32
	directory uint32
	length    uint32
	signature uint32
	digest    content.CID
	moved     ID
}

// Moved is the pack that took over the frames, or "".
func (f Footer) Moved() ID { return f.moved }

func (f Footer) append(b []byte) []byte {
	var buf [footerSize]byte
	copy(buf[:], footerMagic)
	if f.moved != "" {
		binary.BigEndian.PutUint16(buf[8:], flagMoved)
		buf[footerMoved] = byte(copy(buf[footerMoved+1:footerChecksum], f.moved))
	}
	binary.BigEndian.PutUint32(buf[12:], f.entries)
	binary.BigEndian.PutUint32(buf[16:], f.directory)
	binary.BigEndian.PutUint32(buf[20:], f.length)
	binary.BigEndian.PutUint32(buf[24:], f.signature)
	copy(buf[32:], f.digest[:])
	binary.BigEndian.PutUint32(buf[footerChecksum:], checksum(buf[:footerChecksum]))
	copy(buf[footerChecksum+4:], footerEnd)
	return append(b, buf[:]...)
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// decodeFooter reads the last footerSize bytes of a pack; anything but a valid footer is ErrCorrupt.
func decodeFooter(b []byte) (Footer, error) {
	corrupt := func(why string) (Footer, error) {
		return Footer{}, fmt.Errorf("footer: %w: %s", content.ErrCorrupt, why)
	}
	if len(b) != footerSize || string(b[:len(footerMagic)]) != footerMagic || string(b[footerChecksum+4:]) != footerEnd {
		return corrupt("no magic")
	}
	if binary.BigEndian.Uint32(b[footerChecksum:]) != checksum(b[:footerChecksum]) {
		return corrupt("wrong checksum")
	}
	f := Footer{
		entries:   binary.BigEndian.Uint32(b[12:]),
		directory: binary.BigEndian.Uint32(b[16:]),
		length:    binary.BigEndian.Uint32(b[20:]),
		signature: binary.BigEndian.Uint32(b[24:]),
		digest:    content.CID(b[32:64]),
	}
	flags, n := binary.BigEndian.Uint16(b[8:]), int(b[footerMoved])
	switch {
	case flags&^footerFlagsMask != 0 || !content.IsZero(b[10:12]) || !content.IsZero(b[28:32]):
		return corrupt("flags or reserved bytes that are not known here")
	case n > movedSizeMax || flags&flagMoved != 0 != (n > 0) || !content.IsZero(b[footerMoved+1+n:footerChecksum]):
		return corrupt("the pack that took over")
	case f.signature > content.RecordSizeMax || f.entries == 0 && f.signature > 0:
		return corrupt(fmt.Sprintf("a signature of %d bytes over %d entries", f.signature, f.entries))
	case f.length > SizeMax || uint64(f.directory)+uint64(f.entries)*EntrySize+uint64(f.signature)+footerSize != uint64(f.length):
		return corrupt(fmt.Sprintf("%d entries at %d in a pack of %d bytes", f.entries, f.directory, f.length))
	case f.entries == 0 && n == 0:
		return corrupt("neither frames nor a pack that took them over")
	}
	if n > 0 {
		id, err := ParseID(string(b[footerMoved+1 : footerMoved+1+n]))
		if err != nil {
			return Footer{}, fmt.Errorf("footer: %w: %w", content.ErrCorrupt, err)
		}
		f.moved = id
	}
	return f, nil
}

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
	// Signature is who vouches for Entries, as trust.Verifier.OpenPack reads it; a claim, or empty.
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
