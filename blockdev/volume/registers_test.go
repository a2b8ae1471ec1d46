package volume

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/simulations/registers"
	"github.com/grangemesh/grange/simulations/soak"

	"github.com/grangemesh/grange/blockdev/volume/extents"
)

// The clients of one volume access these sectors, on both sides of the end of a chunk.
const (
	firstSector, sectorsUsed = testChunk/extents.SectorSize - 8, 16
	diskAt                   = int64(firstSector * extents.SectorSize)
)

// access has a client do one thing with some of the sectors, in each way that there is.
func access(v *Volume, h *registers.History, client int, rng *rand.Rand, value uint64) error {
	ctx := context.Background()
	at := rng.Int64N(sectorsUsed)
	n := 1 + rng.Int64N(sectorsUsed-at)
	p, off := make([]byte, n*extents.SectorSize), diskAt+at*extents.SectorSize
	registers.Fill(p, value)
	call := h.Now()
	var err error
	switch rng.IntN(9) {
	case 0:
		err = v.WriteAt(ctx, p, off, rng.IntN(4) == 0)
	case 1:
		if !v.TryWriteFrom(bytes.NewReader(p), len(p), off) {
			err = v.WriteAt(ctx, p, off, false)
		}
	case 2:
		half := n / 2 * extents.SectorSize
		ws := []blockdev.Write{{Data: p[half:], Offset: off + half}, {Data: p[:half], Offset: off}}
		if half == 0 {
			ws = ws[:1]
		}
		for _, w := range ws[v.TryWriteBatch(ws):] {
			if err == nil {
				err = v.WriteAt(ctx, w.Data, w.Offset, false)
			}
		}
	case 3:
		value = 0
		err = v.Zero(ctx, off, int64(len(p)), rng.IntN(2) == 0, false)
	case 4:
		return v.Flush(ctx)
	case 5:
		if !v.TryReadAt(p, off) {
			err = v.ReadAt(ctx, p, off)
		}
		return errorOr(err, func() error { return h.Read(client, call, h.Now(), at, p) })
	case 6:
		if !v.TryReadTo(window(p), len(p), off) {
			err = v.ReadAt(ctx, p, off)
		}
		return errorOr(err, func() error { return h.Read(client, call, h.Now(), at, p) })
	default:
		err = v.ReadAt(ctx, p, off)
		return errorOr(err, func() error { return h.Read(client, call, h.Now(), at, p) })
	}
	return errorOr(err, func() error { h.Wrote(client, call, at, n, value); return nil })
}

func errorOr(err error, do func() error) error {
	if err != nil {
		return err
	}
	return do()
}

// disturb seals, reads what was at that moment, twice and with compaction between, folds it
// into another root, and begins an epoch, until done.
func disturb(v *Volume, h *registers.History, client int, rng *rand.Rand, done <-chan struct{}) error {
	ctx := context.Background()
	for epoch := uint64(2); ; epoch++ {
		select {
		case <-done:
			return nil
		default:
		}
		call := h.Now()
		p, err := v.Seal(ctx)
		if err != nil {
			return err
		}
		end := h.Now()
		var was []byte
		for range 2 {
			disk := make([]byte, 4*testChunk)
			if err := v.ReadAsOf(ctx, disk, 0, p); err != nil {
				return err
			}
			if was != nil && !bytes.Equal(was, disk) {
				return fmt.Errorf("what was at entry %d has changed", p.Seq)
			}
			was = disk
			v.tend()
		}
		if err := h.Read(client, call, end, 0, was[diskAt:][:sectorsUsed*extents.SectorSize]); err != nil {
			return err
		}
		if rng.IntN(2) == 0 {
			if err := v.Rebase(flat(was), int64(len(was)), testChunk, p); err != nil {
				return err
			}
		}
		if v.Release(p); rng.IntN(4) == 0 {
			v.Enter(epoch)
		}
	}
}

// TestConcurrentClientsSeeOneDisk has clients read, write and zero the same sectors of one
// volume, in all ways that it has, beside seals, snapshots, folds, compaction and new epochs:
// one order of what they did explains all that they read, sector by sector.
func TestConcurrentClientsSeeOneDisk(t *testing.T) {
	clients, calls := 5, soak.Of(150, 600)
	for round := range soak.Rounds(100) {
		cfg := config(create(t))
		cfg.Size, cfg.SegmentSize, cfg.Memory, cfg.ChunkSize = 4*testChunk, 16<<10, 40<<10, testChunk
		v, err := Open(cfg)
		must(t, err)
		h, seed := registers.New(), uint64(round)
		if soak.Full() {
			seed = rand.Uint64()
		}
		done := make(chan struct{})
		var all, beside errgroup.Group
		beside.Go(func() error { return disturb(v, h, clients, rand.New(rand.NewPCG(seed, 99)), done) })
		for c := range clients {
			rng := rand.New(rand.NewPCG(seed, uint64(c)))
			all.Go(func() error {
				for n := range calls {
					if err := access(v, h, c, rng, uint64(1+n*clients+c)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		err = all.Wait()
		close(done)
		must(t, err)
		must(t, beside.Wait())
		if err := h.Check(time.Minute); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		must(t, v.Close())
	}
}
