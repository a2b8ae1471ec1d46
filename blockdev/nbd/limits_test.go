package nbd_test

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/blockdev/nbd"
)

// TestLimitedExportHoldsUpNoOther has clients of an export wait for its limits, more than
// one connection may have in the device; clients of another one are answered, and so are
// these once the limits are others.
func TestLimitedExportHoldsUpNoOther(t *testing.T) {
	slow, free := limit.New(newMemory(diskSize), limit.Limits{IOPS: 1}), limit.New(newMemory(diskSize), limit.Limits{})
	s, uri := startServer(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"slow": slow, "free": free}), RequestsMax: 16}, "slow")
	a, b := dial(t, uri), greet(t, uri)
	b.open("free")
	page := bytes.Repeat([]byte{7}, pageSize)
	const asked = 64
	for i := range uint64(asked) {
		a.ask(cmdWrite, 0, i*pageSize, pageSize, page...)
	}
	for i := range uint64(1000) {
		if got := b.do(cmdWrite, 0, i%8*pageSize, pageSize, page...); got.code != 0 {
			t.Fatalf("write to the other export: error %d", got.code)
		}
		if got := b.do(cmdRead, 0, i%8*pageSize, pageSize); !bytes.Equal(got.data, page) {
			t.Fatal("the other export reads otherwise")
		}
	}
	slow.Set(limit.Limits{BytesPerSecond: 1 << 40})
	for range asked {
		if got := a.answer(); got.code != 0 {
			t.Errorf("error %d", got.code)
		}
	}
	slow.Set(limit.Limits{IOPS: 1})
	for range asked {
		a.ask(cmdRead, 0, 0, pageSize)
	}
	if err := s.Detach(t.Context(), "slow"); err != nil { // reads that wait are cut
		t.Error(err)
	}
}

// growing is a disk whose size may grow while it is served.
type growing struct {
	*memory
	size atomic.Int64
}

func (g *growing) Geometry() blockdev.Geometry {
	geometry := g.memory.Geometry()
	geometry.Size = g.size.Load()
	return geometry
}

// TestGrownExport has a disk grow under its clients: who connects again sees it.
func TestGrownExport(t *testing.T) {
	g := &growing{memory: newMemory(2 * diskSize)}
	g.size.Store(diskSize)
	uri := serveDisk(t, g)
	old := dial(t, uri)
	beyond, page := uint64(2*diskSize-pageSize), bytes.Repeat([]byte{7}, pageSize)
	if got := old.do(cmdWrite, 0, beyond, pageSize, page...); got.code != enospc {
		t.Errorf("beyond the end: error %d", got.code)
	}
	g.size.Store(2 * diskSize)
	again := dial(t, uri)
	if again.size != 2*diskSize {
		t.Errorf("who connects again sees %d bytes", again.size)
	}
	for _, c := range []*client{again, old} {
		if got := c.do(cmdWrite, 0, beyond, pageSize, page...); got.code != 0 {
			t.Errorf("error %d", got.code)
		}
	}
}
