package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/golden"
)

// row is the chunks of a tree in memory.
type row [][]byte

func (r *row) add(_ context.Context, index uint64, raw []byte) error {
	if index != uint64(len(*r)) || len(raw) == 0 || len(raw) > ChunkSize {
		return fmt.Errorf("chunk %d of %d bytes, behind %d", index, len(raw), len(*r))
	}
	*r = append(*r, bytes.Clone(raw))
	return nil
}

func (r row) ReadChunk(_ context.Context, index uint64, off int, p []byte) error {
	if index >= uint64(len(r)) || off < 0 || off+len(p) > len(r[index]) {
		return fmt.Errorf("%w: %d bytes from %d of chunk %d", content.ErrCorrupt, len(p), off, index)
	}
	copy(p, r[index][off:])
	return nil
}

func (r row) root() content.Root {
	root := content.Root{Kind: content.RootTree, ChunkSize: ChunkSize, Count: uint64(len(r))}
	for _, c := range r {
		root.Size += int64(len(c))
	}
	return root
}

// node is a thing of a model: an entry with its bytes, or what is in it.
type node struct {
	Entry
	data  []byte // what is in a file, holes included
	stamp []byte
	in    []*node
}

func (n *node) parts() []Range {
	if n.Ranges == nil && n.Size > 0 {
		return []Range{{Length: n.Size}}
	}
	return n.Ranges
}

func (n *node) write(ctx context.Context, w *Writer) error {
	if !n.Is(Folder) {
		if !n.Is(Regular) || n.Same != nil {
			return w.Add(ctx, n.Entry, nil, nil)
		}
		return w.Add(ctx, n.Entry, n.stamp, func(yield func([]byte, int64) error) error {
			for _, r := range n.parts() {
				if err := yield(n.data[r.Off:r.end()], r.Off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := w.Enter(n.Entry); err != nil {
		return err
	}
	for _, in := range n.in {
		if err := in.write(ctx, w); err != nil {
			return err
		}
	}
	return w.Leave()
}

func (n *node) written(t testing.TB) row {
	t.Helper()
	var chunks row
	w, err := NewWriter(Config{Codec: content.NewCodec(), Add: chunks.add})
	if err == nil {
		err = n.write(t.Context(), w)
	}
	if err == nil {
		_, err = w.Close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return chunks
}

func (n *node) equal(t *rapid.T, of *Tree, f File) {
	ctx := context.Background()
	got := f.Entry
	if got.Own, got.Below = 0, 0; n.Is(Folder) {
		got.Data = 0
	}
	if !reflect.DeepEqual(got, n.Entry) {
		t.Fatalf("%+v, want %+v", got, n.Entry)
	}
	if n.Is(Folder) {
		files, err := of.List(ctx, f)
		if err != nil || len(files) != len(n.in) {
			t.Fatalf("%d entries, %v, want %d", len(files), err, len(n.in))
		}
		for i := range files {
			n.in[i].equal(t, of, files[i])
		}
		return
	}
	off := rapid.Int64Range(0, n.Size).Draw(t, "off")
	p := make([]byte, rapid.Int64Range(0, n.Size-off+3).Draw(t, "length"))
	m, err := of.ReadAt(ctx, f, p, off)
	if want := n.data[off:min(n.Size, off+int64(len(p)))]; !bytes.Equal(p[:m], want) || err != nil && err != io.EOF || m < len(p) && err != io.EOF {
		t.Fatalf("%q from %d: %d bytes, %v", n.Name, off, m, err)
	}
}

func randomData(seed, n int) []byte {
	data := make([]byte, n)
	rnd := rand.New(rand.NewPCG(uint64(seed), 1))
	for i := range data {
		data[i] = byte(rnd.Uint32() | 1)
	}
	return data
}

func drawFile(t *rapid.T, n *node) {
	n.Mode |= Regular
	n.data = randomData(rapid.IntRange(0, 9).Draw(t, "seed"), rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 400_000)).Draw(t, "size"))
	n.Size = int64(len(n.data))
	if n.Size >= largeMin && rapid.Bool().Draw(t, "sparse") {
		from := rapid.Int64Range(1, n.Size-1).Draw(t, "from")
		to := rapid.Int64Range(from+1, n.Size).Draw(t, "to")
		n.Ranges = []Range{{Off: 0, Length: from}}
		if to < n.Size {
			n.Ranges = append(n.Ranges, Range{Off: to, Length: n.Size - to})
		}
		clear(n.data[from:to])
	}
	n.Data = n.held()
}

func drawNode(t *rapid.T, deep int, name string) *node {
	n := &node{Entry: Entry{Mode: rapid.Uint32Range(0, 0o7777).Draw(t, "mode"), UID: rapid.Uint32().Draw(t, "uid"), Seconds: rapid.Int64().Draw(t, "seconds"), Nanos: rapid.Uint32Range(0, 999_999_999).Draw(t, "nanos")}}
	if name != "" {
		n.Name = []byte(name)
	}
	if rapid.Bool().Draw(t, "xattr") {
		n.Xattrs = []Xattr{{Name: []byte("user.a"), Value: []byte{0, 255}}}
	}
	switch kind := rapid.IntRange(0, 5).Draw(t, "kind"); {
	case name == "" || kind == 0 && deep < 4:
		n.Mode |= Folder
		for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c\xff]{1,3}`), 0, 6, rapid.ID).Draw(t, "names") {
			n.in = append(n.in, drawNode(t, deep+1, name))
		}
		sortNodes(n.in)
	case kind == 1:
		n.Mode, n.Target = n.Mode|Link, []byte("../else")
	case kind == 2:
		n.Mode, n.Device = n.Mode|CharDevice, 7
	default:
		drawFile(t, n)
	}
	return n
}

func sortNodes(in []*node) {
	for i := range in {
		for j := i; j > 0 && bytes.Compare(in[j].Name, in[j-1].Name) < 0; j-- {
			in[j], in[j-1] = in[j-1], in[j]
		}
	}
}

// TestWhatIsWrittenIsRead: any tree reads as it was written, from any place.
func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := drawNode(r, 0, "")
		chunks := n.written(t)
		of, err := Open(t.Context(), content.NewCodec(), chunks.root(), chunks.ReadChunk)
		if err != nil {
			r.Fatal(err)
		}
		n.equal(r, of, of.Top())
	})
}

// TestWhatIsKnownIsNotRead: of files whose stamps are as they were nothing is read, and the tree is the same.
func TestWhatIsKnownIsNotRead(t *testing.T) {
	known := map[content.CID]Segment{}
	write := func(top *node) (chunks row, kept int) {
		w, err := NewWriter(Config{
			Codec: content.NewCodec(), Add: chunks.add, Note: func(key content.CID, s Segment) { known[key] = s },
			Known: func(key content.CID) (Segment, bool) { s, ok := known[key]; return s, ok },
			Keep: func(_ context.Context, _ uint64, p Piece) error {
				kept += p.Length
				chunks = append(chunks, make([]byte, p.Length))
				return nil
			},
		})
		if err == nil {
			err = top.write(t.Context(), w)
		}
		if err == nil {
			_, err = w.Close(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		return chunks, kept
	}
	top := &node{Entry: Entry{Mode: Folder | 0o755}}
	size := 0
	for i := range 300 {
		n := &node{Entry: Entry{Name: fmt.Appendf(nil, "f%03d", i), Mode: Regular}, stamp: []byte{1, byte(i)}}
		n.data = randomData(i, 1+i*7919%9000)
		if i%100 == 0 {
			n.data = randomData(i, 300_000)
			clear(n.data[100_000:200_000])
			n.Ranges = []Range{{Length: 100_000}, {Off: 200_000, Length: 100_000}}
		}
		n.Size, size = int64(len(n.data)), size+len(n.data)
		top.in = append(top.in, n)
	}
	first, kept := write(top)
	if kept > 0 {
		t.Errorf("%d bytes are known of nothing", kept)
	}
	again, kept := write(top)
	if len(again) != len(first) || !bytes.Equal(again[len(again)-1], first[len(first)-1]) || !bytes.Equal(again[len(again)-2], first[len(first)-2]) {
		t.Error("it is another tree")
	}
	if kept < size-3*100_000 {
		t.Errorf("%d of %d bytes were read again", size-kept, size)
	}
	changed := top.in[150]
	changed.data, changed.stamp = randomData(-1, len(changed.data)), []byte{2}
	if _, now := write(top); now < kept-2*groupMost || now == kept {
		t.Errorf("of %d bytes %d are kept when a small file has changed", kept, now)
	}
}

// TestTheFormatStays: a tree with one thing of each kind, as its chunks one behind the other.
func TestTheFormatStays(t *testing.T) {
	entry := func(name string, mode uint32) Entry {
		return Entry{Name: []byte(name), Mode: mode, UID: 1000, GID: 100, Seconds: 1 << 33, Nanos: 123_456_789}
	}
	top, folder := &node{Entry: Entry{Mode: Folder | 0o755}}, &node{Entry: entry("folder", Folder|0o1777)}
	file, sparse := &node{Entry: entry("file", Regular|0o4751), data: []byte("some words")}, &node{Entry: entry("sparse", Regular|0o600), data: make([]byte, 70_000)}
	file.Size, file.Links, file.Xattrs = int64(len(file.data)), 2, []Xattr{{Name: []byte("user.note"), Value: []byte("words")}}
	sparse.Size, sparse.Ranges, sparse.data[9000] = int64(len(sparse.data)), []Range{{Off: 8192, Length: 4096}}, 7
	again, link, device := entry("again", Regular|0o4751), entry("link", Link|0o777), entry("null", CharDevice|0o666)
	again.Same, link.Target, device.Device = []byte("file"), []byte("folder/sparse"), 0x103
	folder.in = []*node{{Entry: again}, {Entry: link}, {Entry: device}, sparse}
	top.in = []*node{file, folder}
	golden.Check(t, "tree", bytes.Join(top.written(t), nil))
}

// FuzzTree: whatever the chunks of a tree are, it is read or ErrCorrupt, and nothing hangs or panics.
func FuzzTree(f *testing.F) {
	top := &node{Entry: Entry{Mode: Folder | 0o755}}
	for i := range 3 {
		n := &node{Entry: Entry{Name: fmt.Appendf(nil, "f%d", i), Mode: Regular, Size: 300, Data: 300}, data: randomData(i, 300)}
		top.in = append(top.in, n)
	}
	chunks := top.written(f)
	f.Add(bytes.Join(chunks, nil), len(chunks[0]), len(chunks[1]), len(chunks[2]))
	f.Fuzz(func(t *testing.T, all []byte, one, two, three int) {
		var chunks row
		for _, n := range []int{one, two, three, len(all)} {
			if n = min(n, len(all), ChunkSize); n > 0 {
				chunks, all = append(chunks, all[:n]), all[n:]
			}
		}
		of, err := Open(t.Context(), content.NewCodec(), chunks.root(), chunks.ReadChunk)
		if err != nil {
			return
		}
		walk(t, of, of.Top(), 0)
	})
}

func walk(t *testing.T, of *Tree, f File, deep int) {
	files, err := of.List(t.Context(), f)
	if err != nil {
		return
	}
	for _, f := range files {
		if f.Is(Folder) {
			if deep > 50 {
				t.Fatal("it has no end")
			}
			walk(t, of, f, deep+1)
			continue
		}
		if _, err := of.ReadAt(t.Context(), f, make([]byte, min(f.Size, 4<<10)), 0); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, content.ErrCorrupt) {
			t.Fatal(err)
		}
	}
}

// TestWhatChangesIsLittle: a change in one file of many leaves the chunks of the others, and the listings of folders
// elsewhere, as they are.
func TestWhatChangesIsLittle(t *testing.T) {
	top := &node{Entry: Entry{Mode: Folder | 0o755}}
	for i := range 40 {
		in := &node{Entry: Entry{Name: fmt.Appendf(nil, "d%02d", i), Mode: Folder | 0o755}}
		for j := range 100 {
			size := 200 + (i*100+j)*7919%9000
			if j == 50 {
				size = 1 << 20
			}
			in.in = append(in.in, &node{Entry: Entry{Name: fmt.Appendf(nil, "f%02d", j), Mode: Regular, Size: int64(size), Data: int64(size)}, data: randomData(i*100+j, size)})
		}
		top.in = append(top.in, in)
	}
	before := map[content.CID]bool{}
	for _, c := range top.written(t) {
		before[content.Sum(c)] = true
	}
	small := top.in[20].in[10]
	small.data = randomData(-1, len(small.data)+1)
	small.Size, small.Data = small.Size+1, small.Data+1
	large := top.in[30].in[50]
	large.data = append(bytes.Clone(large.data[:500_000]), large.data[500_003:]...)
	large.Size, large.Data = large.Size-3, large.Data-3
	sum := 0
	for _, c := range top.written(t) {
		if !before[content.Sum(c)] {
			sum += len(c)
		}
	}
	t.Logf("%d KiB are new", sum>>10)
	if most := 2*groupMost/4 + 6*ChunkSize; sum > most {
		t.Errorf("%d KiB are new, at most %d are right", sum>>10, most>>10)
	}
}
