// Package registers tells whether what concurrent clients of a disk read and wrote can be
// what one disk did, one thing after the other: each sector is a register, which a write
// takes whole. The history is the caller's; porcupine looks for the order.
package registers

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Sector is the size of a register, in bytes.
const Sector = 512

// Fill has each sector of p hold a value, which no other write has: 0 is that of zeros.
func Fill(p []byte, value uint64) {
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], value)
	}
}

// History is what clients did. All sectors hold 0 first. Safe for concurrent use.
type History struct {
	began time.Time

	mu sync.Mutex
	of map[int64][]porcupine.Operation // by sector
}

// New begins a history.
func New() *History {
	return &History{began: time.Now(), of: map[int64][]porcupine.Operation{}}
}

// Now is the time, for the begin of a call.
func (h *History) Now() int64 { return time.Since(h.began).Nanoseconds() }

type access struct {
	write bool
	value uint64
}

// Wrote says that a client has written n sectors from one on, in a call that began at a
// time and has just ended.
func (h *History) Wrote(client int, call, sector, n int64, value uint64) {
	end := h.Now()
	for i := range n {
		h.add(sector+i, porcupine.Operation{ClientId: client, Input: access{true, value}, Call: call, Return: end})
	}
}

// Read says what a client has read, in a call from one time to another. A sector that is of
// two writes is an error.
func (h *History) Read(client int, call, end, sector int64, p []byte) error {
	for ; len(p) > 0; p, sector = p[Sector:], sector+1 {
		value := binary.LittleEndian.Uint64(p)
		for at := 8; at < Sector; at += 8 {
			if other := binary.LittleEndian.Uint64(p[at:]); other != value {
				return fmt.Errorf("sector %d is torn: it has %d, and at %d %d", sector, value, at, other)
			}
		}
		h.add(sector, porcupine.Operation{ClientId: client, Input: access{false, value}, Call: call, Return: end})
	}
	return nil
}

func (h *History) add(sector int64, o porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of[sector] = append(h.of[sector], o)
}

// Check looks for an order of each sector's accesses that explains what was read, for so
// long a time each. It is to be called once, at the end.
func (h *History) Check(within time.Duration) error {
	register := porcupine.Model{
		Init: func() any { return uint64(0) },
		Step: func(state, input, _ any) (bool, any) {
			in := input.(access)
			return in.write || in.value == state.(uint64), in.value
		},
	}
	for _, sector := range slices.Sorted(maps.Keys(h.of)) {
		if got := porcupine.CheckOperationsTimeout(register, h.of[sector], within); got != porcupine.Ok {
			return fmt.Errorf("sector %d: %s: no order of these accesses explains what was read: %+v", sector, got, h.of[sector])
		}
	}
	return nil
}
