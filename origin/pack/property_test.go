package pack

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
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
