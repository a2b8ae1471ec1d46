package merge_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/boots/merge"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// size is of a disk that has more chunks than a list may.
const size = 4 * catalog.BootChunksMax * content.ChunkSizeDefault

// disk is the head of one, and its root.
func disk(t testing.TB) (pack.Head, content.CID) {
	id, err := pack.ParseID("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string, offset uint32) pack.Extent {
		return pack.Extent{CID: content.Sum([]byte(name)), Location: pack.Location{Pack: id, Offset: offset, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}}
	}
	h := pack.Head{
		Root: content.Root{Size: size, ChunkSize: content.ChunkSizeDefault, Map: at("map", 0).CID}, Scope: content.Mesh(),
		Node: at("map", 1<<24), Page: at("page", 1<<24+1<<12), Manifest: at("manifest", 1<<25),
	}
	root, err := h.Root.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	return h, root.CID()
}

// traces draws what members may say, of whom some have booted and others say anything.
func traces(t *rapid.T) [][]uint64 {
	chunk := rapid.OneOf(rapid.Uint64Range(0, 200), rapid.Uint64Range(0, size/content.ChunkSizeDefault-1))
	boot := rapid.SliceOfN(chunk, 0, 300)
	copied := rapid.Custom(func(t *rapid.T) (all []uint64) {
		first := rapid.Uint64Range(0, 100).Draw(t, "first")
		for n := range rapid.Uint64Range(catalog.BootChunksMax-2, catalog.BootChunksMax+2).Draw(t, "chunks") {
			all = append(all, first+n)
		}
		return all
	})
	return rapid.SliceOfN(rapid.OneOf(boot, boot, copied), 0, catalog.BootRunsMax+4).Draw(t, "traces")
}

// TestListsAreGoodForARecord, whatever was recorded: within all bounds, and of nothing that no boot has touched.
func TestListsAreGoodForARecord(t *testing.T) {
	head, id := disk(t)
	rapid.Check(t, func(t *rapid.T) {
		all := traces(t)
		list := merge.Merge(id, time.Unix(1_700_000_000, 0), all)
		boots := slices.DeleteFunc(slices.Clone(all), func(trace []uint64) bool { return len(trace) == 0 || len(trace) > catalog.BootChunksMax })
		boots = boots[:min(len(boots), catalog.BootRunsMax)]
		if list == nil {
			if len(boots) > 0 && len(all) <= 3 {
				t.Fatalf("nothing is listed of %d boots", len(boots))
			}
			return
		}
		image := catalog.Image{Head: head, Boot: list}
		if _, err := image.Encode(content.NewCodec()); err != nil {
			t.Fatal(err)
		}
		shares := map[uint64]int{}
		for _, trace := range boots {
			seen := map[uint64]bool{}
			for _, chunk := range trace {
				seen[chunk] = true
			}
			for chunk := range maps.Keys(seen) {
				shares[chunk]++
			}
		}
		if list.Runs != len(boots) {
			t.Fatalf("made of %d runs, and %d were boots", list.Runs, len(boots))
		}
		for _, s := range list.Stages {
			for _, chunk := range s.Chunks {
				if shares[chunk] != s.Share || len(boots) >= 4 && 4*s.Share < len(boots) {
					t.Fatalf("chunk %d is said to be of %d boots, and is of %d of %d", chunk, s.Share, shares[chunk], len(boots))
				}
			}
		}
	})
}

// TestWhatIsWantedFirstComesFirst: what one stage has is touched no later, in the boot that comes to it the earliest, than
// all of what the next 64 have; and nothing is lost where there is room.
func TestWhatIsWantedFirstComesFirst(t *testing.T) {
	_, id := disk(t)
	rapid.Check(t, func(t *rapid.T) {
		var all [][]uint64
		rank := map[uint64]int{}
		for range rapid.IntRange(1, 3).Draw(t, "boots") {
			trace := rapid.SliceOfNDistinct(rapid.Uint64Range(0, 400), 100, 200, rapid.ID).Draw(t, "trace")
			for i, chunk := range trace {
				if was, ok := rank[chunk]; !ok || i < was {
					rank[chunk] = i
				}
			}
			all = append(all, trace)
		}
		list := merge.Merge(id, time.Now(), all)
		got := slices.Collect(list.All())
		if len(got) != len(rank) {
			t.Fatalf("%d chunks are listed, of %d", len(got), len(rank))
		}
		latest := -1
		for group := range slices.Chunk(got, catalog.BootStageMax) {
			before := latest
			for _, chunk := range group {
				if rank[chunk] < before {
					t.Fatalf("chunk %d was wanted at %d, and what was wanted at %d comes before it", chunk, rank[chunk], before)
				}
				latest = max(latest, rank[chunk])
			}
		}
	})
}

// TestOneMemberDoesNotFillTheList: of several boots, what one alone says is left out, and what they agree on stays.
func TestOneMemberDoesNotFillTheList(t *testing.T) {
	_, id := disk(t)
	var boot, lie []uint64
	for i := range uint64(100) {
		boot = append(boot, 3*i)
	}
	for i := range uint64(catalog.BootChunksMax) {
		lie = append(lie, 5000-i)
	}
	for n, want := range map[int]int{1: catalog.BootChunksMax, 4: 100, 9: 100} { // a half, a fifth and a tenth
		list := merge.Merge(id, time.Now(), append(slices.Repeat([][]uint64{boot}, n), lie))
		if got := list.Chunks(); n > 1 && got != want || got > want {
			t.Errorf("%d boots and a lie: %d chunks are listed", n, got)
		}
		for _, chunk := range boot {
			if !slices.Contains(slices.Collect(list.All()), chunk) && n > 1 {
				t.Errorf("%d boots and a lie: chunk %d is missing", n, chunk)
			}
		}
	}
	if list := merge.Merge(id, time.Now(), slices.Repeat([][]uint64{boot}, catalog.BootRunsMax+1)); list.Runs != catalog.BootRunsMax {
		t.Errorf("it is made of %d boots", list.Runs)
	}
	for _, none := range [][][]uint64{nil, {{}}, {make([]uint64, catalog.BootChunksMax+1)}} {
		if list := merge.Merge(id, time.Now(), none); list != nil {
			t.Errorf("a list of no boot: %+v", list)
		}
	}
}
