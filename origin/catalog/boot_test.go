package catalog

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// boot returns a list of a golden image's root.
func boot(t testing.TB, runs int, stages ...BootStage) *Boot {
	t.Helper()
	root, err := head(t, content.Mesh()).Root.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	return &Boot{Root: root.CID(), Runs: runs, Made: 1_795_000_000, Stages: stages}
}

func goldenBoot(t testing.TB) *Boot {
	b := boot(t, 3, BootStage{3, []uint64{0, 1, 2, 70, 8191}}, BootStage{3, []uint64{7, 8, 4000}}, BootStage{1, []uint64{3}})
	b.Stored = 400_000
	return b
}

// scattered returns a list that no other takes more room than, for how many chunks it has: more than fit.
func scattered(t testing.TB) *Boot {
	b := boot(t, BootRunsMax)
	for from := range uint64(40) { // chunks are far from each other, and so are those of the whole list
		s := BootStage{Share: 1 + int(from*7)%BootRunsMax}
		for i := range uint64(BootStageMax) {
			s.Chunks = append(s.Chunks, i*(8192/BootStageMax)+from)
		}
		b.Stages = append(b.Stages, s)
	}
	return b
}

func TestGoldenBoot(t *testing.T) {
	b := goldenBoot(t)
	if got := slices.Collect(b.All()); !slices.Equal(got, []uint64{0, 1, 2, 70, 8191, 7, 8, 4000, 3}) || b.Chunks() != len(got) {
		t.Errorf("%d chunks are wanted as %d", b.Chunks(), got)
	}
	var none *Boot
	if empty := boot(t, 1); none.Chunks() != 0 || none.Only(func(uint64) bool { return true }) != nil || empty.Fit(BootSizeMax) != nil {
		t.Error("no list has chunks")
	}
	if fit := b.Fit(BootSizeMax); !reflect.DeepEqual(fit, b) {
		t.Errorf("%+v was made to fit as %+v", b, fit)
	}
	want := boot(t, 3, BootStage{3, []uint64{0, 2, 70}}, BootStage{3, []uint64{8}})
	want.Stored = 400_000 * 4 / 9
	if got := b.Only(func(chunk uint64) bool { return chunk%2 == 0 && chunk != 4000 }); !reflect.DeepEqual(got, want) {
		t.Errorf("part of a list is %+v, want %+v", got, want)
	}
	if got := b.Only(func(uint64) bool { return false }); got != nil {
		t.Errorf("nothing of a list is %+v", got)
	}
}

func TestBadBoots(t *testing.T) {
	c := content.NewCodec()
	for name, spoil := range map[string]func(*Boot){
		"another root":      func(b *Boot) { b.Root = cid(1) },
		"no runs":           func(b *Boot) { b.Runs = 0 },
		"many runs":         func(b *Boot) { b.Runs = BootRunsMax + 1 },
		"made before time":  func(b *Boot) { b.Made = -1 },
		"no stages":         func(b *Boot) { b.Stages = nil },
		"an empty stage":    func(b *Boot) { b.Stages[1].Chunks = nil },
		"a share of none":   func(b *Boot) { b.Stages[0].Share = 0 },
		"a share of more":   func(b *Boot) { b.Stages[0].Share = 4 },
		"a chunk twice":     func(b *Boot) { b.Stages[2].Chunks[0] = 70 },
		"twice in a stage":  func(b *Boot) { b.Stages[0].Chunks[1] = 0 },
		"out of order":      func(b *Boot) { slices.Reverse(b.Stages[1].Chunks) },
		"beyond the disk":   func(b *Boot) { b.Stages[0].Chunks[4] = 8192 },
		"far beyond it":     func(b *Boot) { b.Stages[0].Chunks[4] = 1<<63 - 1 },
		"more than it has":  func(b *Boot) { b.Stored = 9*content.ChunkSizeDefault + 1 },
		"a stage too large": func(b *Boot) { b.Stages[0] = BootStage{3, upTo(BootStageMax + 1)} },
		"too many chunks": func(b *Boot) {
			b.Stages = nil
			for chunks := range slices.Chunk(upTo(BootChunksMax+1), BootStageMax) {
				b.Stages = append(b.Stages, BootStage{1, chunks})
			}
		},
		"too many bytes": func(b *Boot) { b.Runs, b.Stages = BootRunsMax, scattered(t).Stages[:20] },
	} {
		i := goldenImage(t)
		i.Boot = goldenBoot(t)
		spoil(i.Boot)
		if _, err := i.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		i.Boot = nil
		if err := reread(t, i, i.Head.Root.Kind, func() bootWire { b := goldenBoot(t); spoil(b); return b.encode() }()); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%s, of a stranger: %v, want ErrCorrupt", name, err)
		}
	}
	good := goldenBoot(t).encode()
	for name, list := range map[string]bootWire{
		"empty":          {},
		"cut":            good[:len(good)-1],
		"with a zero":    append(slices.Clone(good), 0),
		"a long varint":  slices.Concat(good[:content.CIDSize], []byte{0x83, 0}, good[content.CIDSize+1:]),
		"split runs":     slices.Concat(good[:len(good)-2], []byte{2, 6, 0}),
		"endless runs":   slices.Concat(good[:len(good)-2], []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 1}),
		"an endless run": slices.Concat(good[:len(good)-1], []byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}),
	} {
		if err := reread(t, goldenImage(t), content.RootDisk, list); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("list, %s: %v, want ErrCorrupt", name, err)
		}
	}
	if err := reread(t, goldenImage(t), content.RootDisk, good); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if err := reread(t, goldenImage(t), content.RootTree, good); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("list of a tree: %v, want ErrCorrupt", err)
	}
}

func upTo(n uint64) (all []uint64) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

// reread decodes an image with a list that nobody checked.
func reread(t *testing.T, i Image, kind content.RootKind, list bootWire) error {
	t.Helper()
	c := content.NewCodec()
	if i.Head.Root.Kind = kind; kind == content.RootTree {
		i.Head.Root.Count = 1 << 13
		root, err := i.Head.Root.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		of := root.CID()
		list = slices.Concat(of[:], list[content.CIDSize:])
	}
	h, err := i.Head.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Marshal(struct { // also where the list is empty
		imageWire
		List []byte `cbor:"boot"`
	}{imageWire{Magic: imageMagic, Encoded: h, Image: i}, list})
	if err != nil {
		t.Fatal(err)
	}
	_, err = DecodeImage(c, b)
	return err
}

// TestPropertyBoots: whatever boots have read, as much of it as fits is what a record says, and what goes is less wanted
// than all that stays.
func TestPropertyBoots(t *testing.T) {
	c, image := content.NewCodec(), goldenImage(t)
	shape := image.Head.Root.Shape()
	empty := boot(t, 1)
	rapid.Check(t, func(t *rapid.T) {
		list := *empty
		list.Runs = rapid.IntRange(1, BootRunsMax).Draw(t, "runs")
		left := map[uint64]bool{}
		for range rapid.IntRange(1, 50).Draw(t, "stages") {
			s, near := BootStage{Share: rapid.IntRange(1, list.Runs).Draw(t, "share")}, map[uint64]bool{}
			from, width := rapid.Uint64Range(0, shape.Chunks-1).Draw(t, "from"), rapid.Uint64Range(1, shape.Chunks).Draw(t, "width")
			for range rapid.IntRange(1, BootStageMax).Draw(t, "chunks") {
				if chunk := (from + rapid.Uint64Range(0, width).Draw(t, "chunk")) % shape.Chunks; !left[chunk] {
					near[chunk], left[chunk] = true, true
				}
			}
			if s.Chunks = slices.Sorted(maps.Keys(near)); len(near) > 0 {
				list.Stages = append(list.Stages, s)
			}
		}
		list.Stored = uint64(list.Chunks()) * rapid.Uint64Range(0, content.ChunkSizeDefault).Draw(t, "stored")
		image.Boot = list.Fit(BootSizeMax)
		b, err := image.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeImage(c, b)
		if err != nil || !reflect.DeepEqual(back, image) {
			t.Fatalf("%+v came back as %+v, %v", image.Boot, back.Boot, err)
		}
		kept := map[uint64]bool{}
		for chunk := range image.Boot.All() {
			kept[chunk] = true
		}
		lost := 0 // the largest share of what went
		for _, s := range list.Stages {
			if slices.ContainsFunc(s.Chunks, func(chunk uint64) bool { return !kept[chunk] }) {
				lost = max(lost, s.Share)
			}
		}
		for _, s := range image.Boot.Stages {
			if s.Share < lost {
				t.Fatalf("a stage of share %d stays, and of one of %d something went", s.Share, lost)
			}
		}
		if again := image.Boot.Fit(BootSizeMax); !reflect.DeepEqual(again, image.Boot) {
			t.Fatalf("%+v does not fit as it is", image.Boot)
		}
		if more := len(kept) + 1; lost > 0 && more <= BootChunksMax {
			if size := len(image.Boot.encode()); size < BootSizeMax-20 {
				t.Fatalf("%d of %d chunks stay, in %d bytes", len(kept), list.Chunks(), size)
			}
		}
	})
}
