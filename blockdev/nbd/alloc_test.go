//go:build !race

package nbd_test

import (
	"io"
	"math"
	"runtime"
	"testing"
)

// TestNothingIsAllocatedPerRequest counts what the whole process allocates while
// it answers reads and writes, inline and on goroutines.
func TestNothingIsAllocatedPerRequest(t *testing.T) {
	disk := newSlow()
	const depth, rounds, windows = 32, 200, 5
	disk.entered = make(chan int64, 2*(1+windows)*rounds*depth) // nobody receives
	close(disk.gate)
	c := dial(t, serveDisk(t, disk))
	for _, tt := range []struct {
		name    string
		command uint16
		off     uint64
	}{
		{"inline reads", cmdRead, 0},
		{"inline writes", cmdWrite, 0},
		{"reads on goroutines", cmdRead, slowFrom},
		{"writes on goroutines", cmdWrite, slowFrom},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var batch []byte
			reply := depth * 16
			for i := range uint64(depth) {
				batch = append(batch, c.request(i, tt.command, 0, tt.off+i*pageSize, pageSize)...)
				if tt.command == cmdWrite {
					batch = append(batch, disk.data[:pageSize]...)
				} else {
					reply += 12 + pageSize // a chunk's head is longer by 12
				}
			}
			replies := make([]byte, reply)
			turn := func() {
				if _, err := c.conn.Write(batch); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c.in, replies); err != nil {
					t.Fatal(err)
				}
			}
			for range rounds {
				turn()
			}
			// The runtime allocates too, a goroutine's descriptor or a stack now and
			// then: what a request allocates is there in each of the windows.
			least := math.Inf(1)
			for range windows {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range rounds {
					turn()
				}
				runtime.ReadMemStats(&after)
				least = min(least, float64(after.Mallocs-before.Mallocs)/(depth*rounds))
			}
			if least > 0.05 {
				t.Errorf("%.3f allocations a request", least)
			}
		})
	}
}
