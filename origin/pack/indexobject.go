package pack

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
	"sync"

	"github.com/zeebo/blake3"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// An index object repeats the directories of some packs, so that an importer
// needs not read each pack's own. It lies under "index/<scope>/<hour>-<32
// hex>.index"; the local cache of an Index has the same form. Numbers are
// big-endian.
//
//	offset  size  field
//	     0    16  magic "grange-index/1", padded with zeros
//	    16     4  packs p
//	    20     4  sources s
//	    24     8  zero
//	    32     …  s keys of index objects that this one contains, rising:
//	              length (1), key
//	     …     …  p packs, by rising ID: length (1), ID, entries n (4),
//	              n entries as in a pack's directory
//	     …    32  BLAKE3-256 of all bytes before
const (
	indexMagic  = "grange-index/1\x00\x00"
	indexPrefix = "index/"
	indexSuffix = ".index"

	indexHeaderSize = 32

	// indexObjectMax bounds an index object, in bytes: one PUT, and the memory of
	// whoever writes it.
	indexObjectMax = 32 << 20

	// indexListMax bounds the packs and sources that a decoder believes in: a
	// mesh of 32 TiB.
	indexListMax = 1 << 20
)

// packEntries are the encoded directory entries of one pack.
type packEntries struct {
	id      ID
	entries []byte
}

// writeIndexTo writes an index object. Packs and sources are sorted by it.
func writeIndexTo(w io.Writer, packs []packEntries, sources []string) error {
	slices.SortFunc(packs, func(a, b packEntries) int { return cmp.Compare(a.id, b.id) })
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
		out.WriteByte(byte(len(p.id)))
		out.WriteString(string(p.id))
		out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p.entries)/entrySizeDirectory)))
		out.Write(p.entries)
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
func readIndexFrom(r io.Reader, add func(packEntries) error) (sources []string, err error) {
	hash := blake3.New()
	in := &indexReader{r: io.TeeReader(r, hash)}
	head := in.bytes(indexHeaderSize)
	if in.err == nil && (string(head[:16]) != indexMagic || !isZero(head[24:])) {
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
	last := ID("")
	for i := 0; i < int(packs) && in.err == nil; i++ {
		p := in.pack()
		if p.id <= last {
			in.fail("packs out of order")
		}
		if last = p.id; in.err == nil {
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

func (in *indexReader) pack() packEntries {
	id := in.text()
	if in.err == nil {
		if _, err := ParseID(id); err != nil {
			in.err = fmt.Errorf("%w: %w", content.ErrCorrupt, err)
		}
	}
	n := in.bytes(4)
	if in.err != nil {
		return packEntries{}
	}
	count := binary.BigEndian.Uint32(n)
	if count > SizeMax/entrySizeDirectory {
		in.fail(fmt.Sprintf("pack of %d frames", count))
		return packEntries{}
	}
	return packEntries{ID(id), in.bytes(int(count) * entrySizeDirectory)}
}

// indexer gathers the directories of packs that were uploaded and writes index
// objects of them. An index object only saves later importers reads: when one
// cannot be written, that is logged and nothing else.
type indexer struct {
	cfg BuilderConfig

	mu    sync.Mutex // guards what follows
	packs []packEntries
	size  int
}

// add takes the directory of a pack that is in the bucket.
func (x *indexer) add(ctx context.Context, s sealed) {
	if x.cfg.Fold {
		return
	}
	x.mu.Lock()
	x.packs = append(x.packs, packEntries{s.id, bytes.Clone(s.directory)})
	x.size += idSizeMax + len(s.directory)
	full := x.size > indexObjectMax/2
	x.mu.Unlock()
	if full {
		x.flush(ctx)
	}
}

// flush writes what was gathered.
func (x *indexer) flush(ctx context.Context) {
	x.mu.Lock()
	packs := x.packs
	x.packs, x.size = nil, 0
	x.mu.Unlock()
	if len(packs) == 0 {
		return
	}
	if err := x.write(ctx, packs); err != nil {
		x.cfg.Log.Warn("index object not written; later imports read the footers instead", "packs", len(packs), "error", err)
	}
}

func (x *indexer) write(ctx context.Context, packs []packEntries) error {
	id, err := newID(x.cfg.Scope, x.cfg.Now(), x.cfg.Random)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := writeIndexTo(&b, packs, nil); err != nil {
		return err
	}
	_, err = x.cfg.Bucket.Put(ctx, indexPrefix+string(id)+indexSuffix, bucket.Bytes(b.Bytes()), bucket.IfAbsent())
	if errors.Is(err, bucket.ErrPrecondition) { // a random name: it is this very object
		return nil
	}
	return err
}
