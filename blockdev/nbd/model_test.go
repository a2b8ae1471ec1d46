package nbd_test

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
)

// hesitant answers inline only now and then, so that both ways are taken.
type hesitant struct {
	*memory
	prompt atomic.Bool // what the next try says; set between requests
}

func (h *hesitant) TryReadAt(p []byte, off int64) bool {
	return h.prompt.Load() && h.memory.TryReadAt(p, off)
}

func (h *hesitant) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	return h.prompt.Load() && h.memory.TryWriteFrom(data, n, off)
}

// TestAnySequenceOfRequestsMatchesAShadow drives one device by many requests,
// each over one of several connections, beside a plain slice of bytes.
func TestAnySequenceOfRequestsMatchesAShadow(t *testing.T) {
	const size = 1 << 20
	disk := &hesitant{memory: newMemory(size)}
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk})}, "disk")
	clients := []*client{dial(t, uri), dialSimple(t, uri), dial(t, uri)}
	rapid.Check(t, func(r *rapid.T) {
		disk.Zero(context.Background(), 0, size, false, false)
		shadow := make([]byte, size)
		span := func() (off uint64, n uint32) {
			unit := rapid.SampledFrom([]int{1, 512}).Draw(r, "unit")
			from := rapid.IntRange(0, size/unit-1).Draw(r, "from")
			length := rapid.IntRange(1, size/unit-from).Draw(r, "length")
			if rapid.Bool().Draw(r, "short") {
				length = min(length, 16)
			}
			return uint64(from * unit), uint32(length * unit)
		}
		pick := func() *client {
			disk.prompt.Store(rapid.Bool().Draw(r, "prompt"))
			return rapid.SampledFrom(clients).Draw(r, "client")
		}
		check := func(a answer) {
			if a.code != 0 {
				r.Fatalf("error %d %q", a.code, a.words)
			}
		}
		fua := func() uint16 { return rapid.Uint16Range(0, 1).Draw(r, "fua") }
		r.Repeat(map[string]func(*rapid.T){
			"write": func(r *rapid.T) {
				off, n := span()
				p := bytes.Repeat([]byte{rapid.Byte().Draw(r, "byte")}, int(n))
				check(pick().do(cmdWrite, fua(), off, n, p...))
				copy(shadow[off:], p)
			},
			"zero": func(r *rapid.T) {
				off, n := span()
				check(pick().do(cmdWriteZeroes, fua(), off, n))
				clear(shadow[off : off+uint64(n)])
			},
			"trim": func(r *rapid.T) {
				off, n := span()
				check(pick().do(cmdTrim, fua(), off, n))
				if from, to := (off+511)/512*512, (off+uint64(n))/512*512; from < to { // whole blocks
					clear(shadow[from:to])
				}
			},
			"read": func(r *rapid.T) {
				off, n := span()
				a := pick().do(cmdRead, 0, off, n)
				check(a)
				if !bytes.Equal(a.data, shadow[off:off+uint64(n)]) {
					r.Fatalf("read of %d at %d: other bytes", n, off)
				}
			},
			"status": func(r *rapid.T) {
				off, n := span()
				a := clients[0].do(cmdBlockStatus, 0, off, n)
				check(a)
				end := off + uint64(n)
				for i := 0; i < len(a.states); i += 2 {
					end := off + uint64(a.states[i])
					if a.states[i+1]&2 != 0 && !bytes.Equal(shadow[off:end], make([]byte, end-off)) {
						r.Fatalf("data from %d to %d is said to be zeros", off, end)
					}
					off = end
				}
				if off > end || len(a.states) == 0 {
					r.Fatalf("the states %v leave the range", a.states)
				}
			},
			"flush": func(*rapid.T) { check(pick().do(cmdFlush, 0, 0, 0)) },
		})
	})
}
