package catalog

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// SegmentsMax bounds the segments of a record: those that are more become chunks.
	SegmentsMax = 64
	// AncestorsMax bounds the other volumes that wrote some of them: what a fork was made
	// from, and what that was.
	AncestorsMax = 4

	// epochMax bounds an epoch: it rises by one with each attach.
	epochMax  = 1 << 60
	whichBits = 3 // room for 1+AncestorsMax
)

// Folded is what the bucket has of a volume or a snapshot: a root, and the journal behind it.
//
// The journal is encoded as follows, u being an unsigned and i a signed varint:
//
//	u  number, u seq       of the base
//	u  n, n times 16       the IDs of other volumes, by their first segment
//	u  m, and of each of m segments
//	   i  its epoch, less the one of the segment before, times 8, and which volume it is
//	      of: 0 the record's own, else the n-th other
//	   u  numbers, u entries that it stands for, u bytes that it has, and u tails
//	   16 its sum
type Folded struct {
	// Head has all up to Base; nil for a blank disk never folded. Lineage are the roots
	// before it, the newest first.
	Head    *pack.Head
	Lineage []content.CID
	Base    content.Position
	// Segments are those in the bucket behind Base, a chain.
	Segments []content.SegmentRef
	// Hot are the chunks of Head's root that were read first the last time that a disk was opened; nil for not known. Only
	// a volume's record has it.
	Hot *Boot
	// Since is that of a Change that has a record say this for the first time. It is not encoded.
	Since time.Time
}

// Through is up to where the bucket has it.
func (s Folded) Through() content.Position {
	if n := len(s.Segments); n > 0 {
		return s.Segments[n-1].Through
	}
	return s.Base
}

func (s Folded) encode(c *content.Codec, id content.VolumeID, size int64) (head, lineage, journal []byte, err error) {
	if s.Head != nil {
		if head, err = s.Head.Encode(c); err == nil {
			err = isDisk(*s.Head)
		}
		if err == nil && s.Head.Root.Size > size {
			err = fmt.Errorf("size %d, and its root has %d bytes", size, s.Head.Root.Size)
		}
		if err != nil {
			return nil, nil, nil, err
		}
	}
	if s.Head == nil && s.Base != (content.Position{}) {
		return nil, nil, nil, fmt.Errorf("all up to %v is in no root", s.Base)
	}
	if len(s.Lineage) > content.LineageMax || len(s.Segments) > SegmentsMax {
		return nil, nil, nil, fmt.Errorf("%d ancestors, %d segments; the limits are %d and %d", len(s.Lineage), len(s.Segments), content.LineageMax, SegmentsMax)
	}
	for _, root := range s.Lineage {
		if root.IsHole() {
			return nil, nil, nil, errors.New("an ancestor is a hole")
		}
		lineage = append(lineage, root[:]...)
	}
	journal, err = s.encodeJournal(id)
	return head, lineage, journal, err
}

func (s Folded) encodeJournal(id content.VolumeID) ([]byte, error) {
	volumes := []content.VolumeID{id}
	for _, x := range s.Segments {
		if !slices.Contains(volumes, x.Volume) {
			volumes = append(volumes, x.Volume)
		}
	}
	if len(volumes) > 1+AncestorsMax {
		return nil, fmt.Errorf("its segments are of %d other volumes, the limit is %d", len(volumes)-1, AncestorsMax)
	}
	b := binary.AppendUvarint(binary.AppendUvarint(nil, s.Base.Number), s.Base.Seq)
	b = binary.AppendUvarint(b, uint64(len(volumes)-1))
	for _, v := range volumes[1:] {
		b = append(b, v[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(s.Segments)))
	at, epoch := s.Base, uint64(0)
	for _, x := range s.Segments {
		if x.After != at || x.Through.Number <= at.Number || x.Through.Seq < at.Seq || x.Bytes <= 0 || x.Epoch > epochMax || uint64(x.Tails) > x.Through.Number-at.Number {
			return nil, fmt.Errorf("a segment of epoch %d and %d bytes from %v to %v follows %v", x.Epoch, x.Bytes, x.After, x.Through, at)
		}
		b = binary.AppendVarint(b, int64(x.Epoch-epoch)<<whichBits|int64(slices.Index(volumes, x.Volume)))
		b = binary.AppendUvarint(b, x.Through.Number-at.Number)
		b = binary.AppendUvarint(b, x.Through.Seq-at.Seq)
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(x.Bytes)), uint64(x.Tails))
		b = append(b, x.Sum[:]...)
		at, epoch = x.Through, x.Epoch
	}
	return b, nil
}

// decodeFolded reads what encode wrote, and leaves the checks to it.
func decodeFolded(c *content.Codec, id content.VolumeID, head, lineage, journal []byte) (s Folded, err error) {
	if head != nil {
		h, err := pack.DecodeHead(c, head)
		if err != nil {
			return s, err
		}
		s.Head = &h
	}
	for root := range slices.Chunk(lineage, content.CIDSize) {
		if len(root) == content.CIDSize {
			s.Lineage = append(s.Lineage, content.CID(root))
		}
	}
	r := varints{rest: journal}
	s.Base = content.Position{Number: r.next(), Seq: r.next()}
	volumes := []content.VolumeID{id}
	for n := r.next(); n > 0 && r.err == nil; n-- {
		volumes = append(volumes, r.bytes16())
	}
	at, epoch := s.Base, uint64(0)
	for n := r.next(); n > 0 && r.err == nil; n-- {
		x := content.SegmentRef{After: at}
		step := r.nextSigned()
		which := step & (1<<whichBits - 1)
		if which >= int64(len(volumes)) {
			return s, fmt.Errorf("a segment is of volume %d of %d", which, len(volumes))
		}
		x.Volume, x.Epoch = volumes[which], epoch+uint64(step>>whichBits)
		x.Through = content.Position{Number: at.Number + r.next(), Seq: at.Seq + r.next()}
		x.Bytes, x.Tails, x.Sum = int64(r.next()), int(r.next()), r.bytes16()
		s.Segments = append(s.Segments, x)
		at, epoch = x.Through, x.Epoch
	}
	return s, r.err
}

// varints reads a row of numbers; at the first that is not there it says so, and reads no more.
type varints struct {
	rest []byte
	err  error
}

func (r *varints) next() uint64 {
	x, n := binary.Uvarint(r.rest)
	r.cut(n)
	return x
}

func (r *varints) nextSigned() int64 {
	x, n := binary.Varint(r.rest)
	r.cut(n)
	return x
}

func (r *varints) bytes16() (b [16]byte) {
	n := copy(b[:], r.rest)
	if n < len(b) {
		n = 0
	}
	r.cut(n)
	return b
}

func (r *varints) cut(n int) {
	if n <= 0 {
		r.rest, r.err = nil, errors.New("it ends too early")
		return
	}
	r.rest = r.rest[n:]
}

const (
	// meshFormat is the version of everything that the bucket holds.
	meshFormat = 1
	// meshSizeMax bounds the object, in bytes.
	meshSizeMax = 1 << 10
)

type meshWire struct {
	Mesh   trust.PublicKey `json:"mesh"`
	Format int             `json:"format"`
}

// ClaimMesh makes the bucket the mesh's, or checks that it is already. A bucket
// of another mesh is ErrConflict, one of a newer format ErrUnavailable. Of two
// meshes that claim at once, one gets it. A lost reply is settled by reading.
func ClaimMesh(ctx context.Context, b bucket.Bucket, mesh trust.PublicKey) error {
	body, err := json.Marshal(meshWire{mesh, meshFormat})
	if err != nil {
		return fmt.Errorf("claim the origin: %w", err)
	}
	for range commitTries {
		if err = CheckMesh(ctx, b, mesh); !errors.Is(err, content.ErrNotFound) {
			return err
		}
		_, err = b.Put(ctx, content.KeyMesh, bucket.Bytes(append(body, '\n')), bucket.IfAbsent())
		if err == nil {
			return nil
		}
		if !errors.Is(err, bucket.ErrPrecondition) && !errors.Is(err, bucket.ErrUnknown) {
			break
		}
	}
	return fmt.Errorf("claim the origin: %w", err)
}

// CheckMesh checks that the bucket is the mesh's; ErrNotFound means that nobody has claimed it.
func CheckMesh(ctx context.Context, b bucket.Bucket, mesh trust.PublicKey) error {
	if _, err := bucket.ReadChecked(ctx, b, content.KeyMesh, meshSizeMax, func(text []byte, _ bucket.Info) (struct{}, error) {
		return struct{}{}, checkMesh(text, mesh)
	}); err != nil {
		return fmt.Errorf("read %s of the origin: %w", content.KeyMesh, err)
	}
	return nil
}

func checkMesh(text []byte, mesh trust.PublicKey) error {
	var w meshWire
	if err := json.Unmarshal(text, &w); err != nil {
		return fmt.Errorf("%w: %w", content.ErrCorrupt, err)
	}
	switch {
	case w.Mesh != mesh:
		return fmt.Errorf("the origin: %w: it belongs to mesh %s, and this node is of mesh %s; give --origin an empty bucket or prefix", content.ErrConflict, w.Mesh, mesh)
	case w.Format > meshFormat:
		return fmt.Errorf("the origin: %w: its format is %d, and this version reads up to %d; upgrade", content.ErrUnavailable, w.Format, meshFormat)
	}
	return nil
}
