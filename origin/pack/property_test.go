package pack

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
)

func TestPropertyFramesComeBack(t *testing.T) {
	enc, err := NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	dec := newDecoder()
	rapid.Check(t, func(t *rapid.T) {
		raw := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "bytes"), rapid.IntRange(1, 40).Draw(t, "times"))
		frame, codec := EncodeFrame(enc, []byte("before"), raw)
		frame = frame[len("before"):]
		e := Extent{content.Sum(raw), Location{goldenMesh, 16, uint32(len(frame)), uint32(len(raw)), codec, 0}}
		got, err := decodeFrame(dec, e, frame, make([]byte, len(raw)))
		if err != nil || !bytes.Equal(got.Bytes(), raw) {
			t.Fatalf("%d bytes stored as %d: %v", len(raw), len(frame), err)
		}
		if len(frame) > len(raw) || codec == CodecZstd && len(frame) > len(raw)-len(raw)/gainMin {
			t.Fatalf("%d bytes stored as %d, codec %d", len(raw), len(frame), codec)
		}
	})
}

// TestPropertyFramesAreReadInOneGo: in whatever way they overlap, or leave gaps.
func TestPropertyFramesAreReadInOneGo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pack := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "pack")
		var frames []Extent
		var order []int
		least := uint32(len(pack))
		for i := range rapid.IntRange(1, 8).Draw(t, "frames") {
			from := rapid.IntRange(0, len(pack)-1).Draw(t, "from")
			e := Extent{Location: Location{Offset: uint32(from), Length: uint32(rapid.IntRange(1, len(pack)-from).Draw(t, "length"))}}
			frames, order, least = append(frames, e), append(order, i), min(least, e.Offset)
		}
		slices.SortFunc(order, func(a, b int) int { return cmp.Compare(frames[a].Offset, frames[b].Offset) })
		body, pool := bytes.NewReader(pack[least:]), new(scratch.Pool)
		w := window{pool, new([]byte), least, least}
		for _, i := range order {
			e := frames[i]
			got, err := w.frame(body, e)
			if err != nil || !bytes.Equal(got, pack[e.Offset:e.End()]) {
				t.Fatalf("frame at %d+%d: %v, %v; want %v", e.Offset, e.Length, got, err, pack[e.Offset:e.End()])
			}
		}
	})
}

func TestAFrameThatGrowsTooLarge(t *testing.T) {
	enc, err := NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 16<<20)
	frame := enc.EncodeAll(raw, nil)
	e := Extent{content.Sum(raw), Location{goldenMesh, 16, uint32(len(frame)), content.ChunkSizeMin, CodecZstd, 0}}
	if _, err = decodeFrame(newDecoder(), e, frame, make([]byte, content.ChunkSizeMin)); !errors.Is(err, content.ErrCorrupt) {
		t.Fatalf("error %v, want ErrCorrupt", err)
	}
}
