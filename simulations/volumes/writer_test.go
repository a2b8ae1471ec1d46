package volumes

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
)

const (
	sector = 512
	block  = 4096
	// burst is how many blocks are written between two flushes.
	burst = 8
)

// writer writes blocks and flushes without pause, and keeps what a flush has acknowledged.
// What it writes says in each sector which block and which write of it that is, so that
// nothing that is read later can be taken for something else.
type writer struct {
	acked []uint64 // by block: the write that a flush has acknowledged
	done  []uint64 // the latest write that was not refused
	last  []uint64 // the latest write that was begun
	count uint64
	rng   *rand.Rand
	flush int // how many were acknowledged
}

func newWriter(size int64, seed uint64) *writer {
	return &writer{acked: make([]uint64, size/block), done: make([]uint64, size/block), last: make([]uint64, size/block), rng: rand.New(rand.NewPCG(seed, 0))}
}

// fill makes the bytes of a write of a block.
func fill(p []byte, at int, write uint64) {
	for s := 0; s < len(p); s += sector {
		for i := s; i < s+sector; i += 16 {
			binary.LittleEndian.PutUint64(p[i:], uint64(at))
			binary.LittleEndian.PutUint64(p[i+8:], write)
		}
	}
}

// step writes some blocks, and flushes.
func (w *writer) step(c *client) error {
	p := make([]byte, block)
	for range burst {
		w.count++
		at := w.rng.IntN(len(w.last))
		fill(p, at, w.count)
		w.last[at] = w.count
		if err := c.write(p, int64(at)*block); err != nil {
			return err
		}
		w.done[at] = w.count
	}
	if err := c.flush(); err != nil {
		return err
	}
	w.flush++
	copy(w.acked, w.done)
	return nil
}

// run writes until the connection fails; each is told of flushes that are acknowledged.
func (w *writer) run(c *client, each func(flushes int)) error {
	for {
		if err := w.step(c); err != nil {
			return err
		}
		each(w.flush)
	}
}

// lost says what of acknowledged writes is not in a disk that holds at least those, or
// what is in it that nobody has written; nil if all is well.
func (w *writer) lost(disk []byte) error {
	for at := range w.last {
		for s := 0; s < block; s += sector {
			p := disk[at*block+s:][:sector]
			write := binary.LittleEndian.Uint64(p[8:])
			want := make([]byte, sector)
			if write > 0 {
				fill(want, at, write)
			}
			switch {
			case string(p) != string(want):
				return fmt.Errorf("block %d, sector %d: bytes that nobody has written: %x", at, s/sector, p[:32])
			case write < w.acked[at]:
				return fmt.Errorf("block %d, sector %d: write %d, and %d was acknowledged", at, s/sector, write, w.acked[at])
			case write > w.last[at]:
				return fmt.Errorf("block %d, sector %d: write %d, and the last was %d", at, s/sector, write, w.last[at])
			}
		}
	}
	return nil
}

// seen takes what a disk has for what is there from now on: a write that was not
// acknowledged is, and stays then, or never will be.
func (w *writer) seen(disk []byte) {
	for at := range w.acked {
		writes := make([]uint64, block/sector)
		for s := range writes {
			writes[s] = binary.LittleEndian.Uint64(disk[at*block+s*sector+8:])
		}
		w.acked[at], w.last[at] = slices.Min(writes), slices.Max(writes)
	}
	copy(w.done, w.acked)
}

// disk is what the writer would read if all that it began was done.
func (w *writer) disk() []byte {
	out := make([]byte, len(w.last)*block)
	for at, write := range w.last {
		if write > 0 {
			fill(out[at*block:][:block], at, write)
		}
	}
	return out
}

// older makes the writer take a disk for right that holds any of its writes.
func (w *writer) older() *writer {
	return &writer{acked: make([]uint64, len(w.acked)), last: w.last}
}
