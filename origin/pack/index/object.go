package index

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// An index object repeats the directories of some packs, so that an importer
// needs not read each pack's own. It lies under "index/<scope>/<hour>-<32
// hex>.index"; the local cache of an Index has the same form. Whoever may write to
// the bucket can make one that says anything: of it, only what a signature covers
// is believed. Numbers are big-endian.
//
//	offset  size  field
//	     0    16  magic "grange-index/2", padded with zeros
//	    16     4  packs p
//	    20     4  sources s
//	    24     8  zero
//	    32     …  s keys of index objects that this one contains, rising:
//	              length (1), key
//	     …     …  p packs, by rising ID: length (1), ID, then as below
//	     …    32  BLAKE3-256 of all bytes before
//
// Of a pack:
//
//	 0     4  entries n
//	 4     4  length s of the signature
//	 8     8  when the pack was written, in ns since 1970, by the store's clock
//	16     8  bits of the runs whose frames were read and hashed by whom keeps this
//	24  n*48  entries as in the pack's directory
//	 …     s  signature as in the pack
//
// Time and bits are the local cache's; an index object has zeros, and in it nobody
// looks at them.
const (
	indexMagic  = "grange-index/2\x00\x00"
	indexSuffix = ".index"

	indexHeaderSize = 32
	packHeaderSize  = 24

	// ObjectSizeMax bounds an index object, in bytes: one PUT, and the memory of
	// whoever writes it.
	ObjectSizeMax = 32 << 20

	// indexListMax bounds the packs and sources that a decoder believes in: a
	// mesh of 32 TiB.
	indexListMax = 1 << 20
)

// Pack is what an index says of one pack.
type Pack struct {
	ID pack.ID
	// Entries are the pack's directory, Signature the word for them; as they stand
	// in the pack.
	Entries, Signature []byte

	modified int64  // when the pack was written, as in an Info
	checked  uint64 // bits of the runs whose frames were hashed here
}

// writeIndexTo writes an index object. Packs and sources are sorted by it.
func writeIndexTo(w io.Writer, packs []Pack, sources []string) error {
	slices.SortFunc(packs, func(a, b Pack) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(sources)
	hash := blake3.New()
	out := bufio.NewWriter(io.MultiWriter(w, hash))
	head := append(make([]byte, 0, indexHeaderSize), indexMagic...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(packs)))
	head = binary.BigEndian.AppendUint32(head, uint32(len(sources)))
	out.Write(append(head, make([]byte, 8)...)) // errors stay in out until Flush
	for _, s := range sources {
		out.WriteByte(byte(len(s)))
		out.WriteString(s)
	}
	for _, p := range packs {
		out.WriteByte(byte(len(p.ID)))
		out.WriteString(string(p.ID))
		head = binary.BigEndian.AppendUint32(head[:0], uint32(len(p.Entries)/pack.EntrySize))
		head = binary.BigEndian.AppendUint32(head, uint32(len(p.Signature)))
		head = binary.BigEndian.AppendUint64(head, uint64(p.modified))
		out.Write(binary.BigEndian.AppendUint64(head, p.checked))
		out.Write(p.Entries)
		out.Write(p.Signature)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(hash.Sum(nil))
	return err
}

// readIndexFrom reads an index object and calls add for each pack, whose entries
// are valid until add returns. Nothing may be believed until it has returned
// nil; anything else than a valid index is ErrCorrupt.
func readIndexFrom(r io.Reader, add func(Pack) error) (sources []string, err error) {
	hash := blake3.New()
	in := &indexReader{r: io.TeeReader(r, hash)}
	head := in.bytes(indexHeaderSize)
	if in.err == nil && (string(head[:16]) != indexMagic || !content.IsZero(head[24:])) {
		return nil, fmt.Errorf("index: %w: no magic", content.ErrCorrupt)
	}
	var packs, count uint32
	if in.err == nil {
		packs, count = binary.BigEndian.Uint32(head[16:]), binary.BigEndian.Uint32(head[20:])
	}
	if packs > indexListMax || count > indexListMax {
		return nil, fmt.Errorf("index: %w: %d packs, %d sources", content.ErrCorrupt, packs, count)
	}
	for i := 0; i < int(count) && in.err == nil; i++ {
		key := in.text()
		if i > 0 && sources[i-1] >= key {
			in.fail("sources out of order")
		}
		sources = append(sources, key)
	}
	last := pack.ID("")
	for i := 0; i < int(packs) && in.err == nil; i++ {
		p := in.pack()
		if p.ID <= last {
			in.fail("packs out of order")
		}
		if last = p.ID; in.err == nil {
			in.err = add(p)
		}
	}
	sum := hash.Sum(nil)
	if got := in.bytes(len(sum)); in.err == nil && !bytes.Equal(got, sum) {
		in.fail("wrong checksum")
	}
	if in.err != nil {
		return nil, fmt.Errorf("index: %w", in.err)
	}
	return sources, nil
}

// indexReader reads fields until the first error, which it keeps.
type indexReader struct {
	r   io.Reader
	buf []byte
	err error
}

func (in *indexReader) fail(why string) {
	if in.err == nil {
		in.err = fmt.Errorf("%w: %s", content.ErrCorrupt, why)
	}
}

// bytes returns the next n bytes, valid until the next call. It grows its
// buffer by what has come, never by what was only announced.
func (in *indexReader) bytes(n int) []byte {
	in.buf = in.buf[:0]
	for len(in.buf) < n && in.err == nil {
		start := len(in.buf)
		in.buf = append(in.buf, make([]byte, min(n-start, 1<<20))...)
		if _, err := io.ReadFull(in.r, in.buf[start:]); err != nil {
			in.readFailed(err)
		}
	}
	return in.buf
}

func (in *indexReader) readFailed(err error) {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		in.fail("truncated")
		return
	}
	in.err = err
}

func (in *indexReader) text() string {
	n := in.bytes(1)
	if in.err != nil {
		return ""
	}
	return string(in.bytes(int(n[0])))
}

func (in *indexReader) pack() Pack {
	id := in.text()
	if in.err == nil {
		if _, err := pack.ParseID(id); err != nil {
			in.err = fmt.Errorf("%w: %w", content.ErrCorrupt, err)
		}
	}
	head := in.bytes(packHeaderSize)
	if in.err != nil {
		return Pack{}
	}
	entries, signature := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	p := Pack{ID: pack.ID(id), modified: int64(binary.BigEndian.Uint64(head[8:])), checked: binary.BigEndian.Uint64(head[16:])}
	if entries > pack.SizeMax/pack.EntrySize || signature > content.RecordSizeMax {
		in.fail(fmt.Sprintf("pack of %d frames, signature of %d bytes", entries, signature))
		return Pack{}
	}
	size := int(entries) * pack.EntrySize
	b := in.bytes(size + int(signature))
	if in.err != nil {
		return Pack{}
	}
	p.Entries, p.Signature = b[:size:size], b[size:]
	return p
}

// Store puts an index object of some packs into a bucket, under a fresh id.
func Store(ctx context.Context, to bucket.Bucket, id pack.ID, packs []Pack) error {
	var b bytes.Buffer
	if err := writeIndexTo(&b, packs, nil); err != nil {
		return err
	}
	_, err := to.Put(ctx, string(content.KeyIndexes)+string(id)+indexSuffix, bucket.Bytes(b.Bytes()), bucket.IfAbsent())
	if errors.Is(err, bucket.ErrPrecondition) { // a random name: it is this very object
		return nil
	}
	return err
}
