package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

func encodedEntry(e Entry, data []byte) []byte {
	b := make([]byte, e.Size())
	copy(b[e.DataOffset():], data)
	SumUnits(b[extents.EntryHeader:e.DataOffset()], data)
	e.Seal(5, b)
	return b
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(encodedEntry(Entry{Kind: KindData, Seq: 2, Durable: 1, Start: 8, Sectors: 9}, make([]byte, 9*extents.SectorSize)))
	f.Add(encodedEntry(Entry{Kind: KindZero, Seq: 1, Start: 8, Sectors: 1 << 30}, nil))
	f.Add(encodedEntry(Entry{Kind: KindKeep, Seq: 1, Start: 8, Sectors: 1}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(5, b)
		if err == nil && (e.Size() < extents.EntryHeader || e.DataOffset() > int64(len(b))) {
			t.Errorf("accepted %+v from %d bytes", e, len(b))
		}
	})
}

func FuzzDecodeTable(f *testing.F) {
	t := Table{9, []extents.Extent{{Start: 8, N: 8, Data: 200, Entry: 8, Crc: 5}, {Start: 100, N: 1 << 20}}}
	f.Add(t.Encode(5, 8192), int64(8192))
	f.Add(t.Encode(5, 8192), int64(8275)) // it is from another place
	f.Fuzz(func(t *testing.T, b []byte, off int64) {
		got, err := decodeTable(5, b, off)
		if err == nil && !bytes.Equal(got.Encode(5, off), b) {
			t.Errorf("%x is read as %+v", b, got)
		}
	})
}

func FuzzDecodeNote(f *testing.F) {
	b := Note{1, HeaderSize, 7}.Encode(5)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := decodeNote(5, b); ok {
			if again := n.Encode(5); !bytes.Equal(again[:], b[:NoteSize]) {
				t.Errorf("%x is read as %+v, which is written as %x", b[:NoteSize], n, again)
			}
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(Header{Volume: content.VolumeID{1}, Epoch: 2, Number: 3, After: content.Position{Number: 2, Seq: 9}}.Encode())
	f.Add(Header{Epoch: 2, Number: 9, After: content.Position{Number: 2, Seq: 9}, Merged: 20, Needs: 30}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := DecodeHeader(b); err == nil && !bytes.Equal(h.Encode(), b[:HeaderSize]) {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}

// TestGolden has the bytes of each format, which may not change by accident.
func TestGolden(t *testing.T) {
	id := content.VolumeID{1, 2}
	var b bytes.Buffer
	m, err := NewMerger(Header{Volume: id, Epoch: 3, Number: 7, After: content.Position{Number: 4, Seq: 40}, Merged: 70, Needs: 80}, &b)
	for _, e := range []extents.Extent{{Start: 8, N: 9, Data: 1}, {Start: 64, N: 1 << 20}, {Start: 1 << 30, N: 8, Entry: 8}} {
		for i := range m.Room(e) {
			m.Room(e)[i] = byte(i >> 9)
		}
		if _, more := m.Add(e); more != nil || err != nil {
			t.Fatal(err, more)
		}
	}
	if err := m.Finish(); err != nil {
		t.Fatal(err)
	}
	b.Write(Header{Volume: id, Epoch: 3, Number: 8, After: content.Position{Number: 7, Seq: 70}}.Encode())
	b.Write(encodedEntry(Entry{Kind: KindMark, Seq: 71, Durable: 70}, nil))
	b.Write(Note{8, 120, 71}.Encode(Seed(id, 0)))
	path := filepath.Join("testdata", "journal.golden")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the format has changed: %x", b.Bytes())
	}
}

// TestNoTwoSegmentsHaveOneSeed: what a file held under another number is nothing under this.
func TestNoTwoSegmentsHaveOneSeed(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		id := content.VolumeID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(r, "volume"))
		a, b := rapid.Uint32().Draw(r, "number"), rapid.Uint32().Draw(r, "another")
		if a != b && Seed(id, uint64(a)) == Seed(id, uint64(b)) {
			r.Fatalf("the segments %d and %d have one seed", a, b)
		}
	})
}
