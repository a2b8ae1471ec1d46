package tree

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sort"

	"github.com/grangemesh/grange/origin/content"
)

const (
	endMagic = "GRTREE\x00\x01"
	endSize  = 64
	// tableMax bounds the table: that of 4 TiB, as a rule.
	tableMax = 192 << 20
	// topMax bounds the top's entry: its extended attributes.
	topMax = xattrsMax * (xattrBytesMax + xattrNameMax)
	// tableStep is of how many chunks the place of one is kept in memory.
	tableStep = 64
)

// end is the last chunk of a tree. All integers little-endian:
//
//	0   8  magic "GRTREE\x00\x01"
//	8   8  chunks of data and listings
//	16  8  bytes of the table
//	24  8  bytes of the top's entry
//	32  8  regular files
//	40  8  folders
//	48  8  others
//	56  8  bytes of data
type end struct {
	chunks     uint64
	table, top int64
	Sums
}

func (e end) encode() []byte {
	b := []byte(endMagic)
	for _, n := range []uint64{e.chunks, uint64(e.table), uint64(e.top), e.Files, e.Folders, e.Others, uint64(e.Data)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

// decodeEnd reads the last chunk of a tree of that root; anything but a valid one is ErrCorrupt.
func decodeEnd(root content.Root, b []byte) (e end, err error) {
	if len(b) != endSize || string(b[:8]) != endMagic {
		return e, fmt.Errorf("end of a tree: %w: magic %.8q, want %q", content.ErrCorrupt, b, endMagic)
	}
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	e = end{at(1), int64(at(2)), int64(at(3)), Sums{at(4), at(5), at(6), int64(at(7))}}
	if e.table < 0 || e.table > tableMax || e.top <= 0 || e.top > topMax || e.Data < 0 || e.Data > root.Size ||
		e.chunks > root.Count || e.chunks+tableChunks(e.table)+1 != root.Count {
		return e, fmt.Errorf("end of a tree: %w: %d chunks and a table of %d bytes, in a root of %d", content.ErrCorrupt, e.chunks, e.table, root.Count)
	}
	return e, nil
}

func tableChunks(bytes int64) uint64 { return uint64(bytes+ChunkSize-1) / ChunkSize }

// ReadChunk fills p from byte off of a chunk of a root, which was verified.
type ReadChunk func(ctx context.Context, index uint64, off int, p []byte) error

// ReadStream fills p from byte at of a tree's data and listings.
type ReadStream func(ctx context.Context, p []byte, at int64) error

// Tree reads a tree. Safe for concurrent use, as its ReadChunk has to be.
type Tree struct {
	read  ReadChunk
	over  ReadStream // in place of read, unless it is nil
	codec *content.Codec
	end   end
	top   Entry
	table []byte
	marks []mark // of each tableStep-th chunk
}

// mark is where a chunk begins, in data and listings, and where its length is in the table.
type mark struct {
	off   int64
	table int
}

// File is an entry, and where what it has lies; see Tree.Top and Tree.List.
type File struct {
	Entry
	data, listing int64 // where both begin, in data and listings
}

// FirstNumber is that of the top, where what is in a tree is numbered, see Number.
const FirstNumber = 1

// Number is one for what stands at a place in a folder, as an inode has. No two in a tree have the same: nor do the listings of
// two folders that are not empty begin at one byte, and each has more bytes than entries.
func (f File) Number(place int) uint64 { return FirstNumber + 1 + uint64(f.listing) + uint64(place) }

// Open reads what every reader needs of a tree: the table of its chunks, and the top's entry. A root that is no tree
// is ErrInvalid.
func Open(ctx context.Context, codec *content.Codec, root content.Root, read ReadChunk) (*Tree, error) {
	if root.Kind != content.RootTree || root.ChunkSize != ChunkSize || root.Count == 0 {
		return nil, fmt.Errorf("%w: it is no tree of files", content.ErrInvalid)
	}
	t := &Tree{read: read, codec: codec}
	last := make([]byte, endSize)
	err := read(ctx, root.Count-1, 0, last)
	if err == nil {
		t.end, err = decodeEnd(root, last)
	}
	if err == nil {
		err = t.readTable(ctx, root)
	}
	if err != nil {
		return nil, err
	}
	top := make([]byte, t.end.top)
	if err := t.ReadStream(ctx, top, t.end.Data); err != nil {
		return nil, err
	}
	if t.top, err = decodeTop(codec, top); err == nil && t.end.Data+t.end.top+t.top.Own+t.top.Below != t.bytes() {
		err = fmt.Errorf("top of a tree: %w: its chunks have other sums", content.ErrCorrupt)
	}
	if err == nil && t.top.Data != t.end.Data {
		err = fmt.Errorf("top of a tree: %w: it has %d bytes, and its end says %d", content.ErrCorrupt, t.top.Data, t.end.Data)
	}
	return t, err
}

// Over has files and folders be read by stream, which brings more at once than a chunk.
func (t *Tree) Over(stream ReadStream) *Tree {
	out := *t
	out.over = stream
	return &out
}

// readTable reads how long the chunks are.
func (t *Tree) readTable(ctx context.Context, root content.Root) error {
	t.table = make([]byte, t.end.table)
	for i, rest := t.end.chunks, t.table; len(rest) > 0; i++ {
		n := min(len(rest), ChunkSize)
		if err := t.read(ctx, i, 0, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	at := mark{}
	for i := range t.end.chunks {
		if i%tableStep == 0 {
			t.marks = append(t.marks, at)
		}
		length, n := binary.Uvarint(t.table[at.table:])
		if n <= 0 || length == 0 || length > ChunkSize {
			return fmt.Errorf("table of a tree: %w: chunk %d", content.ErrCorrupt, i)
		}
		at = mark{at.off + int64(length), at.table + n}
	}
	t.marks = append(t.marks, at)
	if at.table != len(t.table) || at.off+t.end.table+endSize != root.Size {
		return fmt.Errorf("table of a tree: %w: it is of %d bytes, and the root of %d", content.ErrCorrupt, at.off, root.Size)
	}
	return nil
}

// bytes is how much data and listings are.
func (t *Tree) bytes() int64 { return t.marks[len(t.marks)-1].off }

// Sums says how much is in the tree.
func (t *Tree) Sums() Sums { return t.end.Sums }

// Top is the folder that all is in; it has no name.
func (t *Tree) Top() File { return File{t.top, 0, t.end.Data + t.end.top} }

// List returns what is in a folder, by rising names.
func (t *Tree) List(ctx context.Context, folder File) ([]File, error) {
	b := make([]byte, folder.Own)
	if err := t.ReadStream(ctx, b, folder.listing); err != nil {
		return nil, err
	}
	entries, err := decodeListing(t.codec, &folder.Entry, b)
	if err != nil {
		return nil, err
	}
	data, listing := folder.data, folder.listing+folder.Own
	out := make([]File, len(entries))
	for i, e := range entries {
		out[i] = File{e, data, listing}
		data, listing = data+e.Data, listing+e.Own+e.Below
	}
	return out, nil
}

// ReadAt fills p from byte off of a regular file, which is no other name of one; at its end it is shorter, with io.EOF.
func (t *Tree) ReadAt(ctx context.Context, f File, p []byte, off int64) (n int, err error) {
	if off < 0 || off >= f.Size {
		return 0, io.EOF
	}
	if int64(len(p)) > f.Size-off {
		p, err = p[:f.Size-off], io.EOF
	}
	if f.Ranges == nil {
		if err := t.ReadStream(ctx, p, f.data+off); err != nil {
			return 0, err
		}
		return len(p), err
	}
	clear(p)
	at := f.data
	for _, r := range f.Ranges {
		from, to := max(r.Off, off), min(r.Off+r.Length, off+int64(len(p)))
		if from < to {
			if err := t.ReadStream(ctx, p[from-off:to-off], at+from-r.Off); err != nil {
				return 0, err
			}
		}
		at += r.Length
	}
	return len(p), err
}

// ReadStream implements the type of that name; what is not in the tree is ErrCorrupt.
func (t *Tree) ReadStream(ctx context.Context, p []byte, at int64) error {
	if at < 0 || at > t.bytes()-int64(len(p)) {
		return fmt.Errorf("tree: %w: it has %d bytes, and something lies at %d", content.ErrCorrupt, t.bytes(), at)
	}
	if len(p) == 0 {
		return nil
	}
	if t.over != nil {
		return t.over(ctx, p, at)
	}
	index, from, table := t.find(at)
	for len(p) > 0 {
		length, n := binary.Uvarint(t.table[table:])
		part := p[:min(int64(len(p)), from+int64(length)-at)]
		if err := t.read(ctx, index, int(at-from), part); err != nil {
			return err
		}
		p, at = p[len(part):], at+int64(len(part))
		index, from, table = index+1, from+int64(length), table+n
	}
	return nil
}

// find returns the chunk that a place lies in, where that begins, and where its length is in the table.
func (t *Tree) find(at int64) (index uint64, from int64, table int) {
	i := sort.Search(len(t.marks), func(i int) bool { return t.marks[i].off > at }) - 1
	index, from, table = uint64(i)*tableStep, t.marks[i].off, t.marks[i].table
	for {
		length, n := binary.Uvarint(t.table[table:])
		if from+int64(length) > at {
			return index, from, table
		}
		index, from, table = index+1, from+int64(length), table+n
	}
}
