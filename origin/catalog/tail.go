package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// A tail is what a flush under the policy `origin` has put into the bucket: a header, and
// a segment that follows the one before. Its key says after which place of the journal it
// comes, and under which epoch, and nothing of where it ends: so one alone can come there.
// Whoever takes the volume over puts one without a segment at the end of the epoch, and
// the old writer's next flush finds the key taken. That one stays while the volume
// exists.
//
// The header, all integers little-endian:
//
//	0   8  magic "GRTAIL\x00\x01"
//	8   16 volume
//	24  8  epoch
//	32  16 number and seq that it comes after
//	48  16 number and seq that it goes through; the same in one that ends an epoch
//	64  8  bytes of the segment, 0 in one that ends an epoch
//	72  16 sum of the segment
//	88  4  zeros
//	92  4  CRC32C of the bytes before
const (
	tailMagic = "GRTAIL\x00\x01"
	// TailHeader is the length of a tail's header, in bytes.
	TailHeader = 96
	tailSum    = TailHeader - 4

	// tailReads is how many tails are read at once by who checks a segment that lies in them.
	tailReads = 16
)

// EncodeTail returns the header of a tail.
func EncodeTail(ref content.SegmentRef) []byte {
	b := make([]byte, tailSum, TailHeader)
	copy(b, tailMagic)
	copy(b[8:], ref.Volume[:])
	for i, x := range []uint64{ref.Epoch, ref.After.Number, ref.After.Seq, ref.Through.Number, ref.Through.Seq, uint64(ref.Bytes)} {
		binary.LittleEndian.PutUint64(b[24+8*i:], x)
	}
	copy(b[72:], ref.Sum[:])
	return binary.LittleEndian.AppendUint32(b, castagnoli(b))
}

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// DecodeTail reads the header of a tail; anything but a valid one is content.ErrCorrupt.
func DecodeTail(b []byte) (ref content.SegmentRef, err error) {
	if len(b) != TailHeader || !bytes.HasPrefix(b, []byte(tailMagic)) || binary.LittleEndian.Uint32(b[tailSum:]) != castagnoli(b[:tailSum]) || binary.LittleEndian.Uint32(b[88:]) != 0 {
		return ref, fmt.Errorf("tail of a journal: %w: no header", content.ErrCorrupt)
	}
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[24+8*i:]) }
	ref = content.SegmentRef{
		Volume: content.VolumeID(b[8:24]), Epoch: at(0), After: content.Position{Number: at(1), Seq: at(2)},
		Through: content.Position{Number: at(3), Seq: at(4)}, Bytes: int64(at(5)), Sum: [16]byte(b[72:88]),
	}
	empty := EndsEpoch(ref) && ref.Through == ref.After && ref.Sum == [16]byte{}
	if !empty && (ref.Bytes <= 0 || ref.Through.Number <= ref.After.Number || ref.Through.Seq < ref.After.Seq) {
		return ref, fmt.Errorf("tail of a journal: %w: %d bytes after %v through %v", content.ErrCorrupt, ref.Bytes, ref.After, ref.Through)
	}
	return ref, nil
}

// EndsEpoch reports whether a tail ends its epoch.
func EndsEpoch(tail content.SegmentRef) bool { return tail.Bytes == 0 }

// JoinTails returns a chain of tails, of which there is one at least, as the one segment of a record.
func JoinTails(chain []content.SegmentRef) content.SegmentRef {
	run, headers := chain[0], []byte(nil)
	run.Bytes = 0
	for _, ref := range chain {
		headers = append(headers, EncodeTail(ref)...)
		run.Bytes += ref.Bytes
	}
	run.Through, run.Sum, run.Tails = chain[len(chain)-1].Through, content.HalfSum(headers), len(chain)
	return run
}

// TailKeys lists the tails of a volume that come after one place or a later one, and before
// another; those of one epoch, or of each for 0, in their order.
func TailKeys(ctx context.Context, store bucket.Bucket, within content.SegmentRef) (keys []string, err error) {
	prefix := fmt.Sprintf("%s%s/", content.KeyJournals, within.Volume)
	if within.Epoch > 0 {
		prefix = fmt.Sprintf("%s%016x-", prefix, within.Epoch)
	}
	for info, err := range store.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		if ref, tail, err := content.ParseJournalKey(info.Key); err == nil && tail && within.After.Number <= ref.After.Number && ref.After.Number < within.Through.Number {
			keys = append(keys, info.Key)
		}
	}
	return keys, nil
}

// CheckSegment reads all of a segment that a record names, wherever it lies at an origin, and checks it. What is not
// there is content.ErrNotFound, what is something else content.ErrCorrupt.
func CheckSegment(ctx context.Context, in bucket.Bucket, ref content.SegmentRef) error {
	if ref.Tails == 0 {
		if err := checkSegment(ctx, in, ref); err != nil {
			return fmt.Errorf("segment %s: %w", ref.Key(), err)
		}
		return nil
	}
	tails, err := checkTails(ctx, in, ref)
	switch {
	case err != nil:
	case len(tails) < ref.Tails:
		err = fmt.Errorf("%w: %d of them are there", content.ErrNotFound, len(tails))
	case JoinTails(tails) != ref:
		err = fmt.Errorf("%w: they are others than the record names", content.ErrCorrupt)
	}
	if err != nil {
		return fmt.Errorf("%d tails of volume %s behind number %d: %w", ref.Tails, ref.Volume, ref.After.Number, err)
	}
	return nil
}

func checkSegment(ctx context.Context, in bucket.Bucket, ref content.SegmentRef) error {
	o, err := in.Get(ctx, ref.Key(), bucket.Range{})
	if err != nil {
		return err
	}
	if o.Size != ref.Bytes {
		return errors.Join(fmt.Errorf("%w: it has %d bytes, want %d", content.ErrCorrupt, o.Size, ref.Bytes), o.Body.Close())
	}
	return errors.Join(checkSum(o.Body, ref), o.Body.Close())
}

// checkSum reads the bytes of a segment.
func checkSum(body io.Reader, ref content.SegmentRef) error {
	sum := blake3.New()
	n, err := io.Copy(sum, io.LimitReader(body, ref.Bytes))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", content.ErrUnavailable, err)
	case n < ref.Bytes || [16]byte(sum.Sum(nil)[:16]) != ref.Sum:
		return fmt.Errorf("%w: its %d bytes have another sum", content.ErrCorrupt, ref.Bytes)
	}
	return nil
}

// checkTails reads the tails that a segment lies in, and returns what their headers say.
func checkTails(ctx context.Context, in bucket.Bucket, run content.SegmentRef) ([]content.SegmentRef, error) {
	keys, err := TailKeys(ctx, in, run)
	if err != nil {
		return nil, err
	}
	tails := make([]content.SegmentRef, len(keys))
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(tailReads)
	for i, key := range keys {
		group.Go(func() error {
			var err error
			if tails[i], err = checkTail(reading, in, key); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			return nil
		})
	}
	err = group.Wait()
	return slices.DeleteFunc(tails, EndsEpoch), err // those are by who was slower than the writer
}

func checkTail(ctx context.Context, in bucket.Bucket, key string) (ref content.SegmentRef, err error) {
	o, err := in.Get(ctx, key, bucket.Range{})
	if err != nil {
		return ref, err
	}
	defer func() { err = errors.Join(err, o.Body.Close()) }()
	header := make([]byte, min(TailHeader, o.Size))
	if _, err := io.ReadFull(o.Body, header); err != nil {
		return ref, fmt.Errorf("%w: %w", content.ErrUnavailable, err)
	}
	if ref, err = DecodeTail(header); err != nil {
		return ref, err
	}
	if ref.TailKey() != key || o.Size != TailHeader+ref.Bytes {
		return ref, fmt.Errorf("%w: it is of another place, or has %d bytes instead of %d", content.ErrCorrupt, o.Size, TailHeader+ref.Bytes)
	}
	if EndsEpoch(ref) {
		return ref, nil
	}
	return ref, checkSum(o.Body, ref)
}
