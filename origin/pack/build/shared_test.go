package build

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
)

// TestRootsShareAPack: roots that are folded while a pack is sent lie in the next one together,
// each in one piece; one that fails leaves nothing there, and where a pack can't be sent each
// of its roots has its own.
func TestRootsShareAPack(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprintf("fails %t", fails), func(t *testing.T) {
			const roots = 8
			m := newMemory(t)
			shared, hold := new(Shared), make(chan struct{})
			images, heads, errs := make([]image, roots), make([]pack.Head, roots), make([]error, roots)
			var second string // of the shared packs; set before hold is closed
			m.fault = func(put int, key string) mem.Fault {
				if put == 0 {
					<-hold // until the others are built
				}
				if fails && (put == 0 || key == second) {
					return mem.Fault{Err: content.ErrForbidden}
				}
				return mem.Fault{}
			}
			var folds sync.WaitGroup
			fold := func(i int) {
				images[i] = image{size: 64 * testChunk}
				changes := map[uint64][]byte{}
				for c := range uint64(5) {
					changes[c*7] = chunkOf(uint64(i)*100+c, testChunk)
				}
				images[i].chunks = changes
				cfg := config(m, images[i])
				cfg.Shared, cfg.PackSize, cfg.Random = shared, 4<<20, nil
				var now Base
				now, _, errs[i] = Fold(t.Context(), cfg, Base{}, pack.NewReader(m).ReadNode, changing(changes))
				heads[i] = now.Head
			}
			folds.Go(func() { fold(0) })
			for shared.sending.TryLock() { // until the first is on its way
				shared.sending.Unlock()
			}
			for i := 1; i < roots; i++ {
				folds.Go(func() { fold(i) })
			}
			bad := config(m, image{size: 64 * testChunk})
			bad.Shared, bad.Random = shared, nil
			if _, _, err := Fold(t.Context(), bad, Base{}, pack.NewReader(m).ReadNode, changing(map[uint64][]byte{1: chunkOf(9999, testChunk), 99: {1}})); err == nil {
				t.Error("a chunk that is none was folded")
			}
			for full := false; !full; { // until all are built
				shared.building.Lock()
				if b := shared.filling; b != nil {
					_, entries := b.w.Mark()
					full, second = entries >= (roots-1)*(5+4)*pack.EntrySize, b.w.ID().Key()
				}
				shared.building.Unlock()
			}
			close(hold)
			folds.Wait()
			for i := range roots {
				if errs[i] != nil {
					t.Fatal(errs[i])
				}
				check(t, m.Bucket, heads[i], images[i])
				counted(t, m, heads[i])
			}
			packs := m.Keys("packs/")
			if want := map[bool]int{false: 2, true: roots}[fails]; len(packs) != want {
				t.Fatalf("%d roots are in %d packs, want %d", roots, len(packs), want)
			}
			if fails {
				return
			}
			inOnePiece(t, m, packs, images)
		})
	}
}

// inOnePiece fails unless the chunks of each image lie side by side, and those of none else
// anywhere.
func inOnePiece(t *testing.T, m *memory, packs []string, images []image) {
	t.Helper()
	owner := map[content.CID]int{}
	for i, im := range images {
		for _, raw := range im.chunks {
			owner[content.Sum(bytes.Clone(raw))] = i
		}
	}
	for _, key := range packs {
		id, err := pack.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		d, err := pack.NewReader(m).ReadDirectory(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		var row []int
		for _, e := range d.Entries {
			if e.Role != pack.RoleChunk {
				continue
			}
			i, known := owner[e.CID]
			if !known {
				t.Errorf("%s has a chunk of a root that failed", id)
			}
			row = append(row, i)
		}
		if runs := slices.Compact(slices.Clone(row)); len(runs) != len(slices.Compact(slices.Sorted(slices.Values(row)))) {
			t.Errorf("the chunks of %s lie mixed: %v", id, row)
		}
	}
}
