package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

func encodedEntry(e entry, data []byte) []byte {
	b := make([]byte, e.size())
	copy(b[e.dataOffset():], data)
	sumUnits(b[entryHeader:e.dataOffset()], data)
	e.seal(5, b)
	return b
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(encodedEntry(entry{kind: kindData, seq: 2, durable: 1, start: 8, sectors: 9}, make([]byte, 9*sectorSize)))
	f.Add(encodedEntry(entry{kind: kindZero, seq: 1, start: 8, sectors: 1 << 30}, nil))
	f.Add(encodedEntry(entry{kind: kindKeep, seq: 1, start: 8, sectors: 1}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(5, b)
		if err == nil && (e.size() < entryHeader || e.dataOffset() > int64(len(b))) {
			t.Errorf("accepted %+v from %d bytes", e, len(b))
		}
	})
}

func FuzzDecodeTable(f *testing.F) {
	t := table{9, []extent{{start: 8, n: 8, data: 200, entry: 8, crc: 5}, {start: 100, n: 1 << 20}}}
	f.Add(t.encode(5, 8192), int64(8192))
	f.Add(t.encode(5, 8192), int64(8275)) // it is from another place
	f.Fuzz(func(t *testing.T, b []byte, off int64) {
		got, err := decodeTable(5, b, off)
		if err == nil && !bytes.Equal(got.encode(5, off), b) {
			t.Errorf("%x is read as %+v", b, got)
		}
	})
}

func FuzzDecodeNote(f *testing.F) {
	b := note{1, segmentHeader, 7}.encode(5)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, ok := decodeNote(5, b); ok {
			if again := n.encode(5); !bytes.Equal(again[:], b[:noteSize]) {
				t.Errorf("%x is read as %+v, which is written as %x", b[:noteSize], n, again)
			}
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	f.Add(header{volume: content.VolumeID{1}, epoch: 2, number: 3, after: content.Position{Number: 2, Seq: 9}}.encode())
	f.Add(header{epoch: 2, number: 9, after: content.Position{Number: 2, Seq: 9}, merged: 20, needs: 30}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := decodeHeader(b); ok && !bytes.Equal(h.encode(), b[:segmentHeader]) {
			t.Errorf("%x is read as %+v", b, h)
		}
	})
}

// TestGolden has the bytes of each format, which may not change by accident.
func TestGolden(t *testing.T) {
	id := content.VolumeID{1, 2}
	var b bytes.Buffer
	m, err := newMerger(header{volume: id, epoch: 3, number: 7, after: content.Position{Number: 4, Seq: 40}, merged: 70, needs: 80}, &b)
	for _, e := range []extent{{start: 8, n: 9, data: 1}, {start: 64, n: 1 << 20}, {start: 1 << 30, n: 8, entry: 8}} {
		for i := range m.room(e) {
			m.room(e)[i] = byte(i >> 9)
		}
		if _, more := m.add(e); more != nil || err != nil {
			t.Fatal(err, more)
		}
	}
	if err := m.finish(); err != nil {
		t.Fatal(err)
	}
	b.Write(header{volume: id, epoch: 3, number: 8, after: content.Position{Number: 7, Seq: 70}}.encode())
	b.Write(encodedEntry(entry{kind: kindMark, seq: 71, durable: 70}, nil))
	b.Write(note{8, 120, 71}.encode(seed(id, 0)))
	path := filepath.Join("testdata", "journal.golden")
	want, err := os.ReadFile(path)
	if err != nil {
		t.Error(os.WriteFile(path, b.Bytes(), 0o644))
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the format has changed: %x", b.Bytes())
	}
}
