package pack

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// disk draws an image of up to some thousand chunks whose contents repeat.
func disk(t *rapid.T, label string) image {
	total := rapid.Uint64Range(1, 3*content.MapFanout).Draw(t, label+" chunks")
	im := image{int64(total) * testChunk, make(map[uint64][]byte)}
	variety := rapid.Uint64Range(1, 200).Draw(t, label+" variety")
	at := rapid.SliceOfN(rapid.Uint64Range(0, total-1), 0, 120).Draw(t, label+" data")
	for n, i := range at {
		im.chunks[i] = chunkOf(uint64(n)%variety, testChunk)
	}
	return im
}

// Whatever was built before, an image comes back, has the same root as when it
// is built alone, and nothing that is known is stored again.
func TestPropertyBuildersShareABucket(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		to := newMemory(t)
		stored := make(map[content.CID]bool)
		for _, name := range []string{"first", "second", "third"} {
			im := disk(rt, name)
			cfg := config(to, im)
			cfg.Random, cfg.Known = nil, loadIndex(t, to, "")
			cfg.PackSize = rapid.SampledFrom([]int{16 << 10, 256 << 10, SizeTarget}).Draw(rt, "pack size")
			cfg.Workers = rapid.IntRange(1, 3).Draw(rt, "workers")
			h, s := build(t, cfg, im)
			check(t, to, h, im)
			fresh := 0
			for _, b := range im.chunks {
				if id := content.Sum(b); !stored[id] {
					stored[id] = true
					fresh++
				}
			}
			if int(s.NewChunks) != fresh {
				rt.Fatalf("%d chunks stored, %d are new", s.NewChunks, fresh)
			}
			alone := newMemory(t)
			if want, _ := build(t, config(alone, im), im); want.Root != h.Root {
				rt.Fatalf("root %+v, alone %+v", h.Root, want.Root)
			}
		}
	})
}

func TestPropertyFramesComeBack(t *testing.T) {
	enc, err := newEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	dec := newDecoder()
	rapid.Check(t, func(t *rapid.T) {
		raw := bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "bytes"), rapid.IntRange(1, 40).Draw(t, "times"))
		frame, codec := encodeFrame(enc, []byte("before"), raw)
		frame = frame[len("before"):]
		e := Extent{content.Sum(raw), Location{goldenMesh, 16, uint32(len(frame)), uint32(len(raw)), codec, 0}}
		got, err := decodeFrame(dec, e, frame)
		if err != nil || !bytes.Equal(got.Bytes(), raw) {
			t.Fatalf("%d bytes stored as %d: %v", len(raw), len(frame), err)
		}
		if len(frame) > len(raw) || codec == CodecZstd && len(frame) > len(raw)-len(raw)/gainMin {
			t.Fatalf("%d bytes stored as %d, codec %d", len(raw), len(frame), codec)
		}
	})
}

func TestAFrameThatGrowsTooLarge(t *testing.T) {
	enc, err := newEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 16<<20)
	frame := enc.EncodeAll(raw, nil)
	e := Extent{content.Sum(raw), Location{goldenMesh, 16, uint32(len(frame)), testChunk, CodecZstd, 0}}
	_, err = decodeFrame(newDecoder(), e, frame)
	wantErr(t, err, content.ErrCorrupt)
}
