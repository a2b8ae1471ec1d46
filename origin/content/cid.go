package content

import (
	"bytes"
	"encoding/hex"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	gocid "github.com/ipfs/go-cid"
	mh "github.com/multiformats/go-multihash"
	"github.com/zeebo/blake3"
)

// CIDSize is the length of a digest, in bytes.
const CIDSize = 32

// cidPrefix is what precedes the digest in the binary form of each of our CIDs:
// version 1, codec raw (0x55), multihash BLAKE3 (0x1e), 32 bytes.
const cidPrefix = "\x01\x55\x1e\x20"

// CID names immutable bytes by their BLAKE3-256 digest. Its text and binary forms are those of a CIDv1 with
// the raw codec, whatever the bytes mean: the place that refers to a CID says what it expects to find there.
// The zero CID is not a name: it stands for a hole.
type CID [CIDSize]byte

// Sum names b.
func Sum(b []byte) CID { return CID(blake3.Sum256(b)) }

// HalfSum returns the first half of the hash of b: enough that nobody makes two that share it by chance, for who keeps many.
func HalfSum(b []byte) [16]byte {
	sum := blake3.Sum256(b)
	return [16]byte(sum[:])
}

// ParseCID reads the text form of a CID. Any other version, codec or hash is refused with ErrInvalid.
func ParseCID(s string) (CID, error) {
	c, err := gocid.Decode(s)
	if err != nil {
		return CID{}, fmt.Errorf("CID %.80q: %w: %w", s, ErrInvalid, err)
	}
	id, err := cidFromBytes(c.Bytes())
	if err != nil {
		return CID{}, fmt.Errorf("CID %.80q: %w", s, err)
	}
	return id, nil
}

// Inline returns the bytes that an identity CID carries in itself. Of a CID that carries
// none they are ErrNotFound, of another text ErrInvalid.
func Inline(s string) ([]byte, error) {
	c, err := gocid.Decode(s)
	if err != nil {
		return nil, fmt.Errorf("CID %.80q: %w: %w", s, ErrInvalid, err)
	}
	if d, err := mh.Decode(c.Hash()); err == nil && d.Code == mh.IDENTITY {
		return d.Digest, nil
	}
	return nil, fmt.Errorf("block %s: %w", s, ErrNotFound)
}

func cidFromBytes(b []byte) (CID, error) {
	if len(b) != len(cidPrefix)+CIDSize || string(b[:len(cidPrefix)]) != cidPrefix {
		return CID{}, fmt.Errorf("%w: want CIDv1, raw, BLAKE3-256", ErrInvalid)
	}
	return CID(b[len(cidPrefix):]), nil
}

// IsZero reports whether all of b is zero. Comparing b with itself, one byte on, is the
// fastest way that Go has.
func IsZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// IsHole reports whether id is the zero CID, which names nothing.
func (id CID) IsHole() bool { return id == CID{} }

// CID returns id as a value of go-cid.
func (id CID) CID() gocid.Cid {
	digest, err := mh.Encode(id[:], mh.BLAKE3)
	if err != nil { // a 32-byte digest of a known hash can always be encoded
		panic(fmt.Sprintf("content: encode multihash of %x: %v", id[:], err))
	}
	return gocid.NewCidV1(gocid.Raw, digest)
}

// String returns the base32 text form, or "hole".
func (id CID) String() string {
	if id.IsHole() {
		return "hole"
	}
	return id.CID().String()
}

// Short returns eight hex digits for logs.
func (id CID) Short() string { return hex.EncodeToString(id[:4]) }

// MarshalText and UnmarshalText use the text form; a hole is the empty string.
func (id CID) MarshalText() ([]byte, error) {
	if id.IsHole() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *CID) UnmarshalText(b []byte) (err error) {
	*id = CID{}
	if len(b) > 0 {
		*id, err = ParseCID(string(b))
	}
	return err
}

// linkHead is the CBOR that precedes the binary CID in a dag-cbor link: tag 42,
// a byte string of 37 bytes, the identity multibase prefix.
const linkHead = "\xd8\x2a\x58\x25\x00"

// linkSize is the length of a link, in bytes.
const linkSize = len(linkHead) + len(cidPrefix) + CIDSize

func appendLink(b []byte, id CID) []byte {
	if id.IsHole() {
		return append(b, 0xf6)
	}
	return append(append(append(b, linkHead...), cidPrefix...), id[:]...)
}

// MarshalCBOR writes a dag-cbor link, or null for a hole.
func (id CID) MarshalCBOR() ([]byte, error) {
	return appendLink(make([]byte, 0, linkSize), id), nil
}

// UnmarshalCBOR reads what MarshalCBOR wrote.
func (id *CID) UnmarshalCBOR(b []byte) (err error) {
	if len(b) == 1 && b[0] == 0xf6 {
		*id = CID{}
		return nil
	}
	rest, ok := bytes.CutPrefix(b, []byte(linkHead))
	if !ok {
		return fmt.Errorf("%w: not a link", ErrCorrupt)
	}
	*id, err = cidFromBytes(rest)
	return err
}

var (
	_ cbor.Marshaler   = CID{}
	_ cbor.Unmarshaler = (*CID)(nil)
)

// Verified is bytes that hash to their CID. Only [Verify] and [Seal] make one, so code that takes a Verified
// needs no check of its own. The bytes must not be changed.
type Verified struct {
	id   CID
	data []byte
}

// Verify is the one place where bytes from a peer, a bucket or a disk become
// trusted. It keeps data, and fails with ErrCorrupt when data is not id's.
func Verify(id CID, data []byte) (Verified, error) {
	if got := Sum(data); got != id {
		return Verified{}, fmt.Errorf("%w: %d bytes hash to %s, not %s", ErrCorrupt, len(data), got.Short(), id)
	}
	return Verified{id, data}, nil
}

// Seal names data that was made here. It keeps data.
func Seal(data []byte) Verified { return Verified{Sum(data), data} }

// CID returns the name of the bytes.
func (v Verified) CID() CID { return v.id }

// Bytes returns the bytes, for reading only.
func (v Verified) Bytes() []byte { return v.data }

// Codec encodes our CBOR formats, and decodes them strictly. It writes the dag-cbor subset of CBOR: map keys
// in canonical order, shortest integers, no indefinite lengths, tag 42 alone. Build one with NewCodec and
// share it: it is safe for concurrent use.
type Codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

// cborArrayMax bounds arrays and maps in untrusted input; the largest list we write is a manifest's packs.
const (
	cborArrayMax  = 1 << 20
	cborNestedMax = 16
)

// NewCodec returns the codec of every CBOR format in grange.
func NewCodec() *Codec {
	opts := cbor.CanonicalEncOptions()
	opts.IndefLength = cbor.IndefLengthForbidden
	enc, err := opts.EncMode()
	if err != nil {
		panic(fmt.Sprintf("content: CBOR encoder options: %v", err))
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		MaxArrayElements: cborArrayMax,
		MaxMapPairs:      cborArrayMax,
		MaxNestedLevels:  cborNestedMax,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("content: CBOR decoder options: %v", err))
	}
	return &Codec{enc, dec}
}

// Marshal encodes v.
func (c *Codec) Marshal(v any) ([]byte, error) { return c.enc.Marshal(v) }

// Unmarshal decodes b, all of it, into v; anything else is ErrCorrupt. Fields
// that v does not know are ignored, so that a later version may add some.
func (c *Codec) Unmarshal(b []byte, v any) error {
	if err := c.dec.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}
