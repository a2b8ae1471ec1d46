// Package merge makes one list of what several boots of a root have read. It is pure.
package merge

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// fewRuns is up to how many runs all that any of them touched is listed: of more, a chunk that less than one in rareShare
	// of them touched is one boot's own affair, and costs all others its bytes.
	fewRuns, rareShare = 3, 4
)

// wanted is a chunk that some boots have touched.
type wanted struct {
	chunk uint64
	rank  int // of its first touch, in the boot that came to it the earliest
	share int // how many have touched it
}

// Merge makes the list of a root of what its boots have touched, each in the order of first touch: the union, by the earliest
// rank of each chunk in any of them. A trace that is empty, or longer than catalog.BootChunksMax, is of no boot and left out,
// and so are those behind the first catalog.BootRunsMax; nil says that none is left. What a record has no room for is left out
// too, see catalog.Boot.Fit. Whether the root has such chunks, and what they take, is for the caller to know.
func Merge(root content.CID, now time.Time, traces [][]uint64) *catalog.Boot {
	runs, all := union(traces)
	if runs == 0 {
		return nil
	}
	b := &catalog.Boot{Root: root, Runs: runs, Made: now.Unix()}
	for part := range slices.Chunk(all, catalog.BootStageMax) {
		b.Stages = append(b.Stages, stages(part)...)
	}
	return b.Fit(catalog.BootSizeMax)
}

// union returns how many of the traces are of boots, and what enough of them have touched, in the order in which that is wanted.
func union(traces [][]uint64) (runs int, all []wanted) {
	of := map[uint64]wanted{}
	for _, trace := range traces {
		if len(trace) == 0 || len(trace) > catalog.BootChunksMax || runs == catalog.BootRunsMax {
			continue
		}
		runs++
		seen := make(map[uint64]bool, len(trace))
		for _, chunk := range trace {
			if seen[chunk] {
				continue
			}
			w, before := of[chunk]
			if !before || len(seen) < w.rank {
				w.rank = len(seen)
			}
			seen[chunk] = true
			w.chunk, w.share = chunk, w.share+1
			of[chunk] = w
		}
	}
	for w := range maps.Values(of) {
		if runs <= fewRuns || w.share*rareShare >= runs {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b wanted) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(b.share, a.share), cmp.Compare(a.chunk, b.chunk))
	})
	return runs, all
}

// stages are those of chunks that are wanted at about the same time: one of each share, the greatest first.
func stages(part []wanted) (out []catalog.BootStage) {
	slices.SortFunc(part, func(a, b wanted) int { return cmp.Or(cmp.Compare(b.share, a.share), cmp.Compare(a.chunk, b.chunk)) })
	for _, w := range part {
		if last := len(out) - 1; last < 0 || out[last].Share != w.share {
			out = append(out, catalog.BootStage{Share: w.share})
		}
		s := &out[len(out)-1]
		s.Chunks = append(s.Chunks, w.chunk)
	}
	return out
}
