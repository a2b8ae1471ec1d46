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

// checksum is CRC32C.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// decodeFooter reads the last footerSize bytes of a pack; anything but a valid
// footer is ErrCorrupt.
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
