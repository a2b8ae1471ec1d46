package nbd_test

import (
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/registers"
	"github.com/grangemesh/grange/simulations/soak"
)

// TestConnectionsSeeOneDisk has several connections read, write, zero and trim the same
// sectors of one volume, whose journal is of small segments: one order of what they did
// explains all that they read, sector by sector.
func TestConnectionsSeeOneDisk(t *testing.T) {
	const size, sectors, connections = 64 << 10, 16, 5
	calls := soak.Of(100, 600)
	for round := range soak.Rounds(50) {
		dir := filepath.Join(t.TempDir(), "v")
		id := content.VolumeID{1}
		if err := volume.Create(dir, id); err != nil {
			t.Fatal(err)
		}
		v, err := volume.Open(volume.Config{Dir: dir, ID: id, Epoch: 1, Size: size, SegmentSize: 16 << 10})
		if err != nil {
			t.Fatal(err)
		}
		uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": v})}, "disk")
		h := registers.New()
		seed := uint64(round)
		if soak.Full() {
			seed = rand.Uint64()
		}
		var all sync.WaitGroup
		for i := range connections {
			c, rng := dial(t, uri), rand.New(rand.NewPCG(seed, uint64(i)))
			all.Go(func() {
				for n := range calls {
					accessOver(c, h, i, rng, uint64(1+n*connections+i), sectors)
				}
			})
		}
		all.Wait()
		if err := h.Check(time.Minute); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// accessOver does one thing with some of the sectors over a connection.
func accessOver(c *client, h *registers.History, i int, rng *rand.Rand, value uint64, sectors int64) {
	at := rng.Int64N(sectors)
	n := 1 + rng.Int64N(sectors-at)
	off, length := uint64(at*registers.Sector), uint32(n*registers.Sector)
	call := h.Now()
	var a answer
	switch rng.IntN(6) {
	case 0, 1:
		p := make([]byte, length)
		registers.Fill(p, value)
		a = c.do(cmdWrite, uint16(rng.IntN(8)/7)*flagFUA, off, length, p...)
		h.Wrote(i, call, at, n, value)
	case 2:
		a = c.do([]uint16{cmdWriteZeroes, cmdTrim}[rng.IntN(2)], 0, off, length)
		h.Wrote(i, call, at, n, 0)
	case 3:
		a = c.do(cmdFlush, 0, 0, 0)
	default:
		a = c.do(cmdRead, 0, off, length)
		if err := h.Read(i, call, h.Now(), at, a.data); err != nil {
			c.Error(err)
		}
	}
	if a.code != 0 {
		c.Errorf("error %d %q", a.code, a.words)
	}
}
