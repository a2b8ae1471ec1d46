package catalog

import (
	"iter"

	"github.com/grangemesh/grange/origin/content"
)

const (
	BootSizeMax   = 1536
	BootChunksMax = 2048
	BootStageMax  = 64
	BootRunsMax   = 64
)

// Boot are the chunks of a root that boots have read, in the order in which they are wanted.
type Boot struct {
	Root   content.CID
	Runs   int
	Made   int64
	Stored uint64
	Stages []BootStage
}

// BootStage are up to BootStageMax chunks that are wanted at about the same time.
type BootStage struct {
	Share  int
	Chunks []uint64
}

// All yields the chunks in order.
func (b *Boot) All() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for _, s := range b.Stages {
			for _, c := range s.Chunks {
				if !yield(c) {
					return
				}
			}
		}
	}
}

// Chunks counts them.
func (b *Boot) Chunks() (n int) {
	for range b.All() {
		n++
	}
	return n
}

// Fit is a stand-in.
func (b *Boot) Fit() {}
