package pack

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// Codec says how a frame is stored.
type Codec uint8

const (
	// CodecRaw: the bytes themselves.
	CodecRaw Codec = 0
	// CodecZstd: one zstd frame.
	CodecZstd Codec = 1
)

const (
	// SizeTarget is the size at which a pack is closed: large enough that a
	// request costs little, small enough that a lost upload does too.
	SizeTarget = 32 << 20
	// SizeMax bounds a pack, in bytes: one PUT without multipart.
	SizeMax = 64 << 20

	// FrameSizeMax bounds a stored frame, and its raw form, in bytes: a chunk of
	// the largest size and what encryption may add to it.
	FrameSizeMax = content.ChunkSizeMax + 4<<10
)

// Location is where the stored frame of an object lies. It is a hint: what is
// read there is checked against the object's CID. The zero Location is nowhere.
type Location struct {
	Pack ID
	// Offset and Length of the stored frame in the pack, in bytes.
	Offset, Length uint32
	// Raw is the length of the object itself, in bytes.
	Raw   uint32
	Codec Codec
	// Key is the number of the key that the frame is encrypted under; 0 is none.
	// No other is written yet, and a reader refuses them.
	Key uint8
}

// IsZero reports whether l is nowhere.
func (l Location) IsZero() bool { return l == Location{} }

// End returns the offset of the first byte behind the frame.
func (l Location) End() uint32 { return l.Offset + l.Length }

// Run returns the run that the frame belongs to: the one in which it starts.
func (l Location) Run() Run { return Run{l.Pack, l.Offset / content.RunSize} }

// String returns "pack ID at OFFSET+LENGTH".
func (l Location) String() string { return fmt.Sprintf("pack %s at %d+%d", l.Pack, l.Offset, l.Length) }

// Check fails with ErrCorrupt when no pack could hold a frame like l.
func (l Location) Check() error {
	switch {
	case l.Codec > CodecZstd || l.Key != 0:
		return fmt.Errorf("%w: codec %d, key %d are not known here; a newer version may read them", content.ErrCorrupt, l.Codec, l.Key)
	case l.Offset < headerSize || l.Length == 0 || uint64(l.Offset)+uint64(l.Length) > math.MaxUint32:
		return fmt.Errorf("%w: frame at %d+%d", content.ErrCorrupt, l.Offset, l.Length)
	case l.Raw == 0 || l.Length > l.Raw || l.Codec == CodecRaw && l.Length != l.Raw:
		return fmt.Errorf("%w: frame of %d bytes for %d raw ones, codec %d", content.ErrCorrupt, l.Length, l.Raw, l.Codec)
	}
	return nil
}

// Run is content.RunSize bytes of a pack: the unit of leads and of origin reads.
type Run struct {
	Pack ID
	N    uint32
}

// Extent is a frame that is named: an object and where it lies.
type Extent struct {
	CID content.CID
	Location
}

// Pair is a map node and its locator page, which lies directly behind it.
type Pair struct{ Node, Page Extent }

// ID names a pack: "<scope>/<hour>-<32 hex>", for example "mesh/2026112022-0f…". The hour (UTC) is when it
// was begun, so that a list of recent packs is short; the rest is random, so that writers never collide. The
// zero ID names no pack.
type ID string

const (
	keySuffix = ".pack"

	hourLayout = "2006010215"
	randomSize = 16

	// idTailSize is the length of "<hour>-<32 hex>".
	idTailSize = len(hourLayout) + 1 + 2*randomSize
	// IDSizeMax bounds an ID, in bytes: the longest scope is "farm/" and a name.
	IDSizeMax = len("farm/") + content.NameMax + 1 + idTailSize
)

// NewID returns a fresh ID of scope, with randomness from random.
func NewID(scope content.Scope, now time.Time, random io.Reader) (ID, error) {
	var b [randomSize]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("new pack ID: %w", err)
	}
	return ID(scope.String() + "/" + now.UTC().Format(hourLayout) + "-" + hex.EncodeToString(b[:])), nil
}

// FreshID is NewID with a number that nobody can guess.
func FreshID(scope content.Scope, now time.Time) ID {
	id, _ := NewID(scope, now, rand.Reader) // which never fails
	return id
}

// ParseID checks the form of s; anything else is ErrInvalid.
func ParseID(s string) (ID, error) {
	invalid := func(why string) (ID, error) {
		return "", fmt.Errorf("pack ID %.200q: %w: %s", s, content.ErrInvalid, why)
	}
	slash := strings.LastIndexByte(s, '/')
	if slash < 0 || len(s)-slash-1 != idTailSize {
		return invalid("want SCOPE/HOUR-HEX")
	}
	if _, err := content.ParseScope(s[:slash]); err != nil {
		return "", fmt.Errorf("pack ID %.200q: %w", s, err)
	}
	hour, random := s[slash+1:slash+1+len(hourLayout)], s[len(s)-2*randomSize:]
	if t, err := time.Parse(hourLayout, hour); err != nil || t.Format(hourLayout) != hour {
		return invalid("want an hour as YYYYMMDDHH")
	}
	if s[len(s)-2*randomSize-1] != '-' || strings.Trim(random, "0123456789abcdef") != "" {
		return invalid("want 32 hex digits at the end")
	}
	return ID(s), nil
}

// ParseKey returns the ID of the pack stored under a bucket key.
func ParseKey(key string) (ID, error) { return CutKey(key, content.KeyPacks, keySuffix) }

// CutKey returns the ID in a bucket key of a space.
func CutKey(key string, space content.KeySpace, suffix string) (ID, error) {
	s, inSpace := strings.CutPrefix(key, string(space))
	s, hasSuffix := strings.CutSuffix(s, suffix)
	if !inSpace || !hasSuffix {
		return "", fmt.Errorf("key %.200q: %w: want %sID%s", key, content.ErrInvalid, space, suffix)
	}
	return ParseID(s)
}

// Key returns the bucket key of the pack.
func (id ID) Key() string { return string(content.KeyPacks) + string(id) + keySuffix }

// Scope returns the scope that the pack lies in, or the zero Scope when id is not valid.
func (id ID) Scope() content.Scope {
	slash := strings.LastIndexByte(string(id), '/')
	if slash < 0 {
		return content.Scope{}
	}
	scope, err := content.ParseScope(string(id[:slash]))
	if err != nil {
		return content.Scope{}
	}
	return scope
}

// Age returns the part of a valid id that is the greater the later it was begun.
func (id ID) Age() string { return string(id[len(id)-idTailSize:]) }

// hourPrefix returns the key prefix that id shares with the packs of its scope and hour.
func (id ID) hourPrefix() string {
	return string(content.KeyPacks) + string(id[:len(id)-2*randomSize])
}

// Place is a Location without pointers, for those who keep many: Pack is its number in a Table.
type Place struct {
	Pack, Offset, Length, Raw uint32
	Codec                     Codec
}

// Table numbers packs in the order of their first use. Owned by one goroutine.
type Table struct {
	ids     []ID
	numbers map[ID]uint32
}

// Number returns the number of a pack, a new one at its first use.
func (t *Table) Number(id ID) uint32 {
	if n, ok := t.numbers[id]; ok {
		return n
	}
	if t.numbers == nil {
		t.numbers = make(map[ID]uint32)
	}
	n := uint32(len(t.ids))
	t.ids = append(t.ids, id)
	t.numbers[id] = n
	return n
}

// Place returns l by the number of its pack.
func (t *Table) Place(l Location) Place {
	return Place{t.Number(l.Pack), l.Offset, l.Length, l.Raw, l.Codec}
}

// Location returns what Place was given.
func (t *Table) Location(p Place) Location {
	return Location{Pack: t.ids[p.Pack], Offset: p.Offset, Length: p.Length, Raw: p.Raw, Codec: p.Codec}
}

// IDs returns all packs by their numbers; for reading only.
func (t *Table) IDs() []ID { return t.ids }
