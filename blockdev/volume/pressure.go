package volume

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"
)

// What is free of the disk under a volume, as a share of it, decides how writes go. Flushes, reads, zeroes and discards always pass.
const (
	// compactBelow has the journal compacted as far as that gives anything.
	compactBelow = 0.20
	// slowBelow has writes run at the rate at which the journal gives space back.
	slowBelow = 0.10
	// stopBelow has them wait, and fail in the end.
	stopBelow = 0.05
	// spaceWait is how long a write waits for space: half of what the kernel's block layer gives a request by default.
	spaceWait = 30 * time.Second
	// spaceLook is how often a write that waits looks again.
	spaceLook = 100 * time.Millisecond
	// allowanceMax is how much is written before the disk is looked at again.
	allowanceMax = 4 << 20
)

// pressure is what there is too little space for.
type pressure struct {
	allowance atomic.Int64 // bytes that may be written before the next look
	freed     atomic.Int64 // bytes that the journal gave back, and nobody has used yet
	behind    atomic.Bool  // the journal or its map is larger than it may be
}

// admitted reports whether n bytes may be written at once.
func (v *Volume) admitted(n int64) bool {
	if v.pressure.behind.Load() {
		return false
	}
	return v.cfg.Free == nil || v.pressure.allowance.Add(-n) >= 0 || v.roomy()
}

// roomy looks at the disk.
func (v *Volume) roomy() bool {
	free := v.cfg.Free()
	if free < compactBelow {
		v.mu.RLock()
		v.tendSoon()
		v.mu.RUnlock()
	}
	if free < slowBelow {
		v.pressure.allowance.Store(0)
		return false
	}
	v.pressure.allowance.Store(allowanceMax)
	v.pressure.freed.Store(0)
	return true
}

// admit waits until n bytes may be written.
func (v *Volume) admit(ctx context.Context, n int64) error {
	if v.admitted(n) {
		return nil
	}
	look, late := time.Tick(spaceLook), time.After(spaceWait)
	for {
		if err := v.writable(); err != nil {
			return err
		}
		v.mu.RLock()
		eased, behind := v.eased, v.pressure.behind.Load()
		if behind {
			v.tendSoon()
		}
		v.mu.RUnlock()
		if !behind && (v.cfg.Free == nil || v.roomy() || v.cfg.Free() >= stopBelow && v.credit(n)) {
			return nil
		}
		select {
		case <-look:
		case <-eased:
		case <-late:
			if v.cfg.Free != nil && v.cfg.Free() < stopBelow {
				return v.refused(syscall.ENOSPC)
			}
			return nil // nothing came free, but there is some space yet
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// credit takes n bytes of what was given back.
func (v *Volume) credit(n int64) bool {
	for {
		freed := v.pressure.freed.Load()
		if freed < n {
			return false
		}
		if v.pressure.freed.CompareAndSwap(freed, freed-n) {
			return true
		}
	}
}

// weigh notes whether the journal or its map has outgrown its bounds, in spite of all
// tending, and lets writes go on when it has not any more. Called with mu.
func (v *Volume) weigh() {
	taken, live := v.space()
	tooLong := taken > 2*live+slackSegments*v.cfg.SegmentSize*11/16 // with room for what compaction copies
	behind := tooLong || v.open.bytes() > v.cfg.Memory
	if v.pressure.behind.Swap(behind) && !behind {
		close(v.eased)
		v.eased = make(chan struct{})
	}
}
