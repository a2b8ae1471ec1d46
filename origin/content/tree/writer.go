package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // which it knows by name

	"github.com/grangemesh/grange/origin/content"
)

const (
	// ChunkSize is the most that a chunk of a tree has, chunkTypical what it has as a rule, and chunkLeast the
	// least, but for the last of a segment: as disks have, so that runs and caches know one size.
	ChunkSize    = content.ChunkSizeDefault
	chunkTypical = 64 << 10
	chunkLeast   = 16 << 10
	// largeMin is the least file that is a segment of its own: of a smaller one most chunks would be short.
	largeMin = 64 << 10
	// Small files are one segment until it has groupLeast and the name of the last says so by one chance in
	// groupOdds: a file that comes or goes leaves the other groups as they are. groupMost ends one in any case.
	groupLeast, groupMost = 64 << 10, 1 << 20
	groupOdds             = 8
)

// Config says where a Writer's chunks go.
type Config struct {
	Codec *content.Codec
	// Add takes the next chunk: 1 to ChunkSize bytes, valid until it returns.
	Add func(ctx context.Context, index uint64, raw []byte) error
	// Known, where it is not nil, returns what a segment was cut into whose files have not changed since, by its key; then they
	// are not read, and Keep takes its chunks instead of Add. Note, unless nil, is told of each segment that has a key.
	Known func(key content.CID) (Segment, bool)
	Keep  func(ctx context.Context, index uint64, p Piece) error
	Note  func(key content.CID, s Segment)
}

// Segment is what files that are cut together have become.
type Segment struct {
	_      struct{} `cbor:",toarray"`
	Ranges []Range  // of a large file, as its Entry has them
	Pieces []Piece
}

// Piece is a chunk of a segment.
type Piece struct {
	_      struct{} `cbor:",toarray"`
	CID    content.CID
	Length int
}

// Data gives what is in a regular file, in rising order: what it does not name is zeros, a hole. It ends with the
// error of yield; p is valid until that returns.
type Data func(yield func(p []byte, off int64) error) error

// Writer writes a tree that is given to it in the order of a walk: Enter the top, what is in it by rising names
// (Add, or Enter … Leave), Leave, Close. It keeps all entries in memory, some 100 bytes each. Not safe for
// concurrent use; after an error it is of no more use.
type Writer struct {
	cfg    Config
	cutter *chunkers.Chunker
	open   []*folder // from the top to the one that is in hand
	top    *folder   // once it was left
	group  []member  // small files that are not written yet,
	size   int64     // of them together
	pieces []Piece   // of the segment that is in hand
	next   uint64
	table  []byte
	sums   Sums
}

// Sums is how much is in a tree.
type Sums struct {
	// Files are regular ones that are no other name of one, Folders count the top, and Others are the rest.
	Files, Folders, Others uint64
	Data                   int64 // bytes of files that are not in holes
}

// folder is one that was not left yet.
type folder struct {
	Entry
	entries  []Entry
	listings [][]byte // of those in it
}

// member is a file of a segment.
type member struct {
	name  string
	size  int64
	stamp []byte
	data  Data
}

// NewWriter returns one that has written nothing.
func NewWriter(cfg Config) (*Writer, error) {
	cutter, err := chunkers.NewChunker("fastcdc", nil, &chunkers.ChunkerOpts{MinSize: chunkLeast, NormalSize: chunkTypical, MaxSize: ChunkSize})
	if err != nil {
		return nil, fmt.Errorf("cut by content: %w", err)
	}
	return &Writer{cfg: cfg, cutter: cutter}, nil
}

// Enter begins a folder; the first is the top, which has no name.
func (w *Writer) Enter(e Entry) error {
	if err := e.check(len(w.open) == 0); err != nil {
		return invalid(err)
	}
	w.sums.Folders++
	w.open = append(w.open, &folder{Entry: e})
	return nil
}

// Add adds what is no folder to the one that is in hand. data is what is in a regular file of Size bytes, and nil for all
// else; it may be called until Close. stamp is one that the file never had when it had other bytes; nil where none is known.
func (w *Writer) Add(ctx context.Context, e Entry, stamp []byte, data Data) error {
	e.Ranges, e.Data = nil, 0
	if data == nil {
		w.sums.Others++
	} else {
		w.sums.Files++
		if err := w.file(ctx, &e, member{string(e.Name), e.Size, stamp, data}); err != nil {
			return fmt.Errorf("%.300q: %w", e.Name, err)
		}
	}
	if err := e.check(false); err != nil {
		return invalid(err)
	}
	f := w.open[len(w.open)-1]
	f.entries, f.Data, w.sums.Data = append(f.entries, e), f.Data+e.Data, w.sums.Data+e.Data
	return nil
}

// file writes a large file, or has the group grow by a small one, whose holes are bytes as others.
func (w *Writer) file(ctx context.Context, e *Entry, m member) error {
	if e.Size < largeMin {
		if e.Data = e.Size; e.Size > 0 {
			w.group, w.size = append(w.group, m), w.size+e.Size
		}
		if endsGroup(w.size, m.name) {
			return w.endGroup(ctx)
		}
		return nil
	}
	if err := w.endGroup(ctx); err != nil {
		return err
	}
	known, err := w.segment(ctx, []member{m}, func() ([]Range, error) {
		next, stop := iter.Pull2(ranged(ctx, e, m.data))
		defer stop()
		err := w.cut(ctx, &pulled{next: next})
		return e.Ranges, err
	})
	if e.Ranges, e.Data = known, 0; err == nil {
		e.Data = e.held()
	}
	return err
}

// endsGroup reports whether a segment of small files ends behind one of that name, with so many bytes.
func endsGroup(size int64, last string) bool {
	return size >= groupMost || size >= groupLeast && content.Weight(last, "")%groupOdds == 0
}

// segment writes files that are cut together by write, unless they are known.
func (w *Writer) segment(ctx context.Context, members []member, write func() ([]Range, error)) ([]Range, error) {
	key, ok := keyOf(members)
	if ok && w.cfg.Known != nil {
		if s, known := w.cfg.Known(key); known {
			for _, p := range s.Pieces {
				w.table = binary.AppendUvarint(w.table, uint64(p.Length))
				if err := w.cfg.Keep(ctx, w.next, p); err != nil {
					return nil, err
				}
				w.next++
			}
			w.note(key, s)
			return s.Ranges, nil
		}
	}
	w.pieces = nil
	ranges, err := write()
	if err == nil && ok {
		w.note(key, Segment{Ranges: ranges, Pieces: w.pieces})
	}
	return ranges, err
}

func (w *Writer) note(key content.CID, s Segment) {
	if w.cfg.Note != nil {
		w.cfg.Note(key, s)
	}
}

// keyOf names a segment by its files' names, sizes and stamps; not ok where one has none.
func keyOf(members []member) (key content.CID, ok bool) {
	var b []byte
	for _, m := range members {
		if len(m.stamp) == 0 {
			return key, false
		}
		for _, part := range [][]byte{[]byte(m.name), m.stamp} {
			b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
		}
		b = binary.AppendUvarint(b, uint64(m.size))
	}
	return content.Sum(b), true
}

// Leave ends the folder that is in hand.
func (w *Writer) Leave() error {
	f := w.open[len(w.open)-1]
	own, err := encodeListing(w.cfg.Codec, f.entries)
	if err != nil {
		return fmt.Errorf("folder %.300q: %w", f.Name, err)
	}
	if len(own) > listingMax {
		return fmt.Errorf("folder %.300q: %w: its listing takes %d bytes, at most %d may be", f.Name, content.ErrInvalid, len(own), listingMax)
	}
	f.Own, f.entries = int64(len(own)), nil
	f.listings = append([][]byte{own}, f.listings...)
	if w.open = w.open[:len(w.open)-1]; len(w.open) == 0 {
		w.top = f
		return nil
	}
	in := w.open[len(w.open)-1]
	in.entries, in.listings = append(in.entries, f.Entry), append(in.listings, f.listings...)
	in.Data, in.Below = in.Data+f.Data, in.Below+f.Own+f.Below
	return nil
}

// Close writes what is left, and ends the tree.
func (w *Writer) Close(ctx context.Context) (Sums, error) {
	if w.top == nil {
		return w.sums, errors.New("the top of the tree was not left")
	}
	if err := w.endGroup(ctx); err != nil {
		return w.sums, err
	}
	top, err := w.cfg.Codec.Marshal(w.top.Entry)
	if err != nil {
		return w.sums, err
	}
	if err := w.cut(ctx, &listed{append([][]byte{top}, w.top.listings...)}); err != nil {
		return w.sums, err
	}
	last := end{w.next, int64(len(w.table)), int64(len(top)), w.sums}.encode()
	for table := w.table; len(table) > 0; {
		n := min(len(table), ChunkSize)
		if err := w.add(ctx, table[:n]); err != nil {
			return w.sums, err
		}
		table = table[n:]
	}
	return w.sums, w.add(ctx, last)
}

func (w *Writer) endGroup(ctx context.Context) error {
	members := w.group
	if len(members) == 0 {
		return nil
	}
	w.group, w.size = nil, 0
	_, err := w.segment(ctx, members, func() ([]Range, error) {
		all := make([]byte, 0, groupMost+largeMin)
		for _, m := range members {
			at := len(all)
			all = append(all, make([]byte, m.size)...)
			err := m.data(func(p []byte, off int64) error {
				if off < 0 || int64(len(p)) > m.size-off {
					return fmt.Errorf("%w: %d bytes at %d of a file of %d", content.ErrInvalid, len(p), off, m.size)
				}
				copy(all[at+int(off):], p)
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("%.300q: %w", m.name, err)
			}
		}
		return nil, w.cut(ctx, bytes.NewReader(all))
	})
	return err
}

// cut writes what r gives, in chunks whose lengths go into the table.
func (w *Writer) cut(ctx context.Context, r io.Reader) error {
	w.cutter.Reset(r)
	for {
		raw, err := w.cutter.Next()
		if err != nil && err != io.EOF {
			return err
		}
		if len(raw) > 0 {
			w.table = binary.AppendUvarint(w.table, uint64(len(raw)))
			if w.cfg.Note != nil {
				w.pieces = append(w.pieces, Piece{CID: content.Sum(raw), Length: len(raw)})
			}
			if err := w.add(ctx, raw); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

func (w *Writer) add(ctx context.Context, raw []byte) error {
	w.next++
	return w.cfg.Add(ctx, w.next-1, raw)
}

// invalid is what is wrong with an entry that was given, and not read.
func invalid(err error) error { return fmt.Errorf("%w: %v", content.ErrInvalid, err) }

// ranged yields what is in the data stream of a file, and notes its Ranges in the entry.
func ranged(ctx context.Context, e *Entry, data Data) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		end := int64(0)
		give := func(p []byte) error {
			e.Data += int64(len(p))
			if !yield(p, context.Cause(ctx)) {
				return errLeft
			}
			return nil
		}
		err := data(func(p []byte, off int64) error {
			if off < end || int64(len(p)) > e.Size-off {
				return fmt.Errorf("%w: %d bytes at %d, behind %d of a file of %d", content.ErrInvalid, len(p), off, end, e.Size)
			}
			for ; off > end && len(e.Ranges) == RangesMax; end = e.last().end() { // no more holes
				zeros := make([]byte, min(off-end, ChunkSize))
				e.last().Length += int64(len(zeros))
				if err := give(zeros); err != nil {
					return err
				}
			}
			if off > end || len(e.Ranges) == 0 {
				e.Ranges = append(e.Ranges, Range{Off: off})
			}
			e.last().Length += int64(len(p))
			end = e.last().end()
			return give(p)
		})
		if err != nil && !errors.Is(err, errLeft) {
			yield(nil, err)
		}
		switch {
		case e.Size > 0 && e.Ranges == nil:
			e.Ranges = []Range{}
		case e.Data == e.Size:
			e.Ranges = nil
		}
	}
}

// errLeft ends Data that nobody reads on.
var errLeft = errors.New("not read to its end")

func (e *Entry) last() *Range { return &e.Ranges[len(e.Ranges)-1] }

func (r Range) end() int64 { return r.Off + r.Length }

// pulled reads what is yielded.
type pulled struct {
	next func() ([]byte, error, bool)
	p    []byte
}

func (r *pulled) Read(p []byte) (int, error) {
	for len(r.p) == 0 {
		part, err, ok := r.next()
		if !ok {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		r.p = part
	}
	n := copy(p, r.p)
	r.p = r.p[n:]
	return n, nil
}

// listed reads listings one behind the other.
type listed struct{ all [][]byte }

func (l *listed) Read(p []byte) (n int, err error) {
	for n < len(p) && len(l.all) > 0 {
		m := copy(p[n:], l.all[0])
		if n += m; m == len(l.all[0]) {
			l.all = l.all[1:]
		} else {
			l.all[0] = l.all[0][m:]
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
