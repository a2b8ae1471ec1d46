package catalog

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	snapshotMagic = "grange-snapshot/1"

	// LabelMax bounds what people call a snapshot, in bytes: a record has room for little.
	LabelMax = 64
)

// Snapshot is the body of a snapshot's record: a volume as it was at one place of its
// journal. It goes on after the volume is gone.
//
// Encoded as a dag-cbor array: magic "grange-snapshot/1", head, lineage, base and segments
// as those of a Volume, what it is of as an array of number and seq, created (milliseconds
// since 1970), then the other fields in the order that they have here. Volume, Number and
// Orphan are in the record's name.
type Snapshot struct {
	// Volume is the name of the volume that it is of, and Number which of it: NAME@N. An orphan is what a
	// node still had of a volume that was taken from it: it has no number, and is called after its Epoch.
	Volume string `cbor:"-"`
	Number uint64 `cbor:"-"`
	Orphan bool   `cbor:"-"`
	ID     content.VolumeID
	Label  string
	// Size of the disk in bytes.
	Size int64
	// Epoch under which the volume was written then.
	Epoch  uint64
	Folded `cbor:"-"`
	// At is what it is a snapshot of: all up to there.
	At content.Position `cbor:"-"`
	// Durable says that the bucket has all of it; until then Holder has the rest.
	Durable bool
	// Parent is what the volume was made from.
	Parent  content.Ref
	Holder  trust.PublicKey
	Created time.Time `cbor:"-"`
	// FsUsed is what the file system on it said that it used, in bytes; 0 is unknown.
	FsUsed int64
}

// Ref is how the snapshot is called.
func (s Snapshot) Ref() content.Ref {
	ref := content.Ref{Kind: content.KindSnapshot, Name: s.Volume, Seq: s.Number, Orphan: s.Orphan}
	if s.Orphan {
		ref.Seq = s.Epoch
	}
	return ref
}

type snapshotWire struct {
	_                               struct{} `cbor:",toarray"`
	Magic                           string
	EncodedHead, Ancestors, Journal []byte
	Number, Seq                     uint64
	Made                            int64
	Snapshot
}

// Encode returns the body's canonical CBOR. What no record of a snapshot may have is ErrInvalid.
func (s Snapshot) Encode(c *content.Codec) ([]byte, error) {
	b, err := s.encode(c)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w: %w", content.ErrInvalid, err)
	}
	return b, nil
}

func (s Snapshot) encode(c *content.Codec) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	w := snapshotWire{Magic: snapshotMagic, Number: s.At.Number, Seq: s.At.Seq, Made: millis(s.Created), Snapshot: s}
	var err error
	if w.EncodedHead, w.Ancestors, w.Journal, err = s.Folded.encode(c, s.ID, s.Size); err != nil {
		return nil, err
	}
	return c.Marshal(w)
}

func (s Snapshot) check() error {
	switch {
	case s.Size <= 0 || s.Size > content.SizeMax || s.Size%content.SectorSize != 0:
		return fmt.Errorf("size %d", s.Size)
	case len(s.Label) > LabelMax || !utf8.ValidString(s.Label):
		return fmt.Errorf("label %.100q, want up to %d bytes of text", s.Label, LabelMax)
	case s.Through().Seq > s.At.Seq || s.Durable && s.Through() != s.At:
		return fmt.Errorf("durable is %t, the bucket has it up to %v, and it is of %v", s.Durable, s.Through(), s.At)
	case s.FsUsed < 0 || millis(s.Created) < 0:
		return fmt.Errorf("a size of %d, or a time, is negative", s.FsUsed)
	}
	return content.KindSnapshot.CheckName(s.Ref().RecordName())
}

// DecodeSnapshot reads an encoded body of the record of that name; anything but the one
// encoding of a valid one is ErrCorrupt.
func DecodeSnapshot(c *content.Codec, name string, b []byte) (Snapshot, error) {
	s, err := decodeSnapshot(c, name, b)
	if err != nil {
		return Snapshot{}, fmt.Errorf("snapshot: %w: %w", content.ErrCorrupt, err)
	}
	return s, nil
}

func decodeSnapshot(c *content.Codec, name string, b []byte) (s Snapshot, err error) {
	ref, err := content.ParseRef(string(content.KindSnapshot) + ":" + name)
	if err != nil {
		return s, err
	}
	var w snapshotWire
	if err := c.Unmarshal(b, &w); err != nil {
		return s, err
	}
	if w.Magic != snapshotMagic {
		return s, fmt.Errorf("magic %.20q", w.Magic)
	}
	s = w.Snapshot
	if s.Folded, err = decodeFolded(c, s.ID, w.EncodedHead, w.Ancestors, w.Journal); err != nil {
		return s, err
	}
	s.Volume, s.Orphan = ref.Name, ref.Orphan
	if !ref.Orphan {
		s.Number = ref.Seq
	}
	s.At, s.Created = content.Position{Number: w.Number, Seq: w.Seq}, fromMillis(w.Made)
	if s.Ref() != ref {
		return s, fmt.Errorf("it is of epoch %d, and called %s", s.Epoch, name)
	}
	return s, isEncodingOf(s.encode, c, b)
}
