package catalog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// BootSizeMax bounds an encoded list, in bytes: with it the largest record of an image has some 250 bytes to spare.
	BootSizeMax = 1536
	// BootChunksMax bounds the chunks of a list: 256 MiB of a disk at content.ChunkSizeDefault, five times what a server
	// reads while it boots, and never the whole of an image.
	BootChunksMax = 2048
	// BootStageMax bounds the chunks of a stage: what is wanted by then is fetched in any order.
	BootStageMax = 64
	// BootRunsMax bounds the boots that a list is made of: more of them tell nothing new.
	BootRunsMax = 64
)

// Boot are the chunks of a disk that boots have read, in the order in which they are wanted.
//
// Encoded as follows, u being an unsigned varint:
//
//	32 the digest of the root's CID
//	u  runs, u made, u stored
//	   and of each stage, to the end,
//	u  its share, u how many runs of neighbours its chunks are, and of each of those
//	   u  how many chunks lie between the run before, or the beginning of the disk, and it, times 2; and 1 more where it has two or more
//	   u  how many it has, less two; of one that has two or more
type Boot struct {
	// Root is what the chunks are of: that of the record.
	Root content.CID
	// Runs is how many boots the list was made of.
	Runs int
	// Made is when, in seconds since 1970.
	Made int64
	// Stored are the bytes that the chunks take at the origin.
	Stored uint64
	// Stages come in the order in which they are wanted.
	Stages []BootStage
}

// BootStage are chunks that are wanted at about the same time.
type BootStage struct {
	// Share is how many of the runs read them.
	Share int
	// Chunks rise, and are in no other stage.
	Chunks []uint64
}

// All yields the chunks in the order in which they are wanted. A nil list has none.
func (b *Boot) All() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		if b == nil {
			return
		}
		for _, s := range b.Stages {
			for _, chunk := range s.Chunks {
				if !yield(chunk) {
					return
				}
			}
		}
	}
}

// Chunks is how many there are.
func (b *Boot) Chunks() (n int) {
	for range b.All() {
		n++
	}
	return n
}

// Only returns the list of those of its chunks that is tells, and Stored in proportion; nil where it tells none.
func (b *Boot) Only(is func(chunk uint64) bool) *Boot {
	if b == nil {
		return nil
	}
	out := &Boot{Root: b.Root, Runs: b.Runs, Made: b.Made}
	for _, s := range b.Stages {
		kept := BootStage{Share: s.Share}
		for _, chunk := range s.Chunks {
			if is(chunk) {
				kept.Chunks = append(kept.Chunks, chunk)
			}
		}
		if len(kept.Chunks) > 0 {
			out.Stages = append(out.Stages, kept)
		}
	}
	n := uint64(out.Chunks())
	if n == 0 {
		return nil
	}
	out.Stored = b.Stored * n / uint64(b.Chunks())
	return out
}

// Fit returns as much of a list as so many bytes have room for, BootSizeMax at most: what the fewest runs read goes first,
// and of that what is wanted last. Stages are as those of a record but for how many there are.
func (b *Boot) Fit(size int) *Boot {
	var order []uint64 // in which they go
	stages := slices.Clone(b.Stages)
	slices.Reverse(stages)
	slices.SortStableFunc(stages, func(x, y BootStage) int { return x.Share - y.Share })
	for _, s := range stages {
		for _, chunk := range slices.Backward(s.Chunks) {
			order = append(order, chunk)
		}
	}
	without := func(n int) *Boot {
		gone := make(map[uint64]bool, n)
		for _, chunk := range order[:n] {
			gone[chunk] = true
		}
		return b.Only(func(chunk uint64) bool { return !gone[chunk] })
	}
	least := max(0, len(order)-BootChunksMax)
	return without(least + sort.Search(len(order)-least, func(n int) bool {
		rest := without(least + n)
		return rest == nil || len(rest.encode()) <= size
	}))
}

func (b *Boot) encode() []byte {
	out := append([]byte{}, b.Root[:]...)
	for _, n := range []uint64{uint64(b.Runs), uint64(b.Made), b.Stored} {
		out = binary.AppendUvarint(out, n)
	}
	for _, s := range b.Stages {
		runs, at, rest := 0, uint64(0), s.Chunks
		var encoded []byte
		for ; len(rest) > 0; runs++ {
			n := 1
			for n < len(rest) && rest[n] == rest[0]+uint64(n) {
				n++
			}
			gap := (rest[0] - at) << 1
			if n == 1 {
				encoded = binary.AppendUvarint(encoded, gap)
			} else {
				encoded = binary.AppendUvarint(binary.AppendUvarint(encoded, gap|1), uint64(n-2))
			}
			at, rest = rest[0]+uint64(n), rest[n:]
		}
		out = binary.AppendUvarint(binary.AppendUvarint(out, uint64(s.Share)), uint64(runs))
		out = append(out, encoded...)
	}
	return out
}

// decodeBoot reads what encode wrote, and leaves the checks to check.
func decodeBoot(b []byte) (*Boot, error) {
	if len(b) < content.CIDSize || len(b) > BootSizeMax {
		return nil, fmt.Errorf("%d bytes, want %d to %d", len(b), content.CIDSize, BootSizeMax)
	}
	r := varints{rest: b[content.CIDSize:]}
	out := &Boot{Root: content.CID(b[:content.CIDSize]), Runs: int(r.next()), Made: int64(r.next()), Stored: r.next()}
	for len(r.rest) > 0 {
		s, at := BootStage{Share: int(r.next())}, uint64(0)
		for runs := r.next(); runs > 0 && r.err == nil; runs-- {
			gap, n := r.next(), uint64(1)
			if gap&1 != 0 {
				n = min(r.next(), BootStageMax) + 2
			}
			if len(s.Chunks)+int(n) > BootStageMax {
				return nil, fmt.Errorf("a stage has more than %d chunks", BootStageMax)
			}
			for at += gap >> 1; n > 0; n-- {
				s.Chunks = append(s.Chunks, at)
				at++
			}
		}
		out.Stages = append(out.Stages, s)
	}
	return out, r.err
}

// check fails for what is no list of a root.
func (b *Boot) check(c *content.Codec, of content.Root) error {
	root, err := of.Encode(c)
	if err != nil {
		return err
	}
	n, size := uint64(b.Chunks()), len(b.encode())
	switch {
	case of.Kind != content.RootDisk:
		return fmt.Errorf("it is of a %s", of.Kind)
	case b.Root != root.CID():
		return fmt.Errorf("it is of root %s, not of %s", b.Root, root.CID())
	case b.Runs < 1 || b.Runs > BootRunsMax || b.Made < 0:
		return fmt.Errorf("made of %d boots at %d; the limit is %d", b.Runs, b.Made, BootRunsMax)
	case n == 0 || n > BootChunksMax || size > BootSizeMax:
		return fmt.Errorf("%d chunks in %d bytes, the limits are %d and %d", n, size, BootChunksMax, BootSizeMax)
	case b.Stored > n*uint64(of.ChunkSize):
		return fmt.Errorf("%d chunks take %d bytes, the limit is %d each", n, b.Stored, of.ChunkSize)
	}
	seen, shape := make(map[uint64]bool, n), of.Shape()
	for _, s := range b.Stages {
		if len(s.Chunks) == 0 || len(s.Chunks) > BootStageMax || s.Share < 1 || s.Share > b.Runs {
			return fmt.Errorf("a stage has %d chunks of %d boots", len(s.Chunks), s.Share)
		}
		for i, chunk := range s.Chunks {
			if chunk >= shape.Chunks || i > 0 && chunk <= s.Chunks[i-1] || seen[chunk] {
				return fmt.Errorf("chunk %d of %d: twice, out of order, or not there", chunk, shape.Chunks)
			}
			seen[chunk] = true
		}
	}
	return nil
}

// bootWire is how a record has a list; nil for none.
type bootWire []byte

// encodeFor returns the list of a head's root, nil for none.
func (b *Boot) encodeFor(c *content.Codec, h pack.Head) (bootWire, error) {
	if b == nil {
		return nil, nil
	}
	if err := b.check(c, h.Root); err != nil {
		return nil, fmt.Errorf("boot list: %w", err)
	}
	return b.encode(), nil
}

// of reads the list of a head's root.
func (w bootWire) of(c *content.Codec, h pack.Head) (*Boot, error) {
	if w == nil {
		return nil, nil
	}
	b, err := decodeBoot(w)
	if err == nil {
		err = b.check(c, h.Root)
	}
	if err == nil && !slices.Equal(b.encode(), w) {
		err = errors.New("not the canonical encoding")
	}
	if err != nil {
		return nil, fmt.Errorf("boot list: %w", err)
	}
	return b, nil
}
