package nbd_test

import (
	"context"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/grangemesh/grange/blockdev"
)

// lined is a disk that counts memory which begins a little behind the beginning of a line
// of the processor's cache: a copy from a page to there takes some processors three times
// as long.
type lined struct {
	*memory
	calls, off atomic.Int64
}

func (l *lined) look(p []byte) {
	l.calls.Add(1)
	if at := uintptr(unsafe.Pointer(unsafe.SliceData(p))) % 64; at != 0 {
		l.off.Add(1)
	}
}

func (l *lined) TryReadAt(p []byte, off int64) bool {
	l.look(p)
	return off < diskSize/2 && l.memory.TryReadAt(p, off)
}

func (l *lined) ReadAt(ctx context.Context, p []byte, off int64) error {
	l.look(p)
	return l.memory.ReadAt(ctx, p, off)
}

func (l *lined) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	l.look(p)
	return l.memory.WriteAt(ctx, p, off, fua)
}

func (l *lined) TryWriteBatch(ws []blockdev.Write) int {
	l.look(ws[0].Data)
	return 0
}

func TestDataBeginsWithALine(t *testing.T) {
	l := &lined{memory: newMemory(diskSize).fill()}
	uri := serveDisk(t, l)
	for _, c := range []*client{dial(t, uri), dialSimple(t, uri)} {
		for _, n := range []uint32{512, pageSize, 128 << 10, 512 << 10} {
			for _, off := range []uint64{0, diskSize / 2} {
				data := c.do(cmdRead, 0, off, n).data
				c.do(cmdWrite, 0, off, n, data...)
			}
		}
	}
	if l.off.Load() > 0 {
		t.Errorf("%d of %d calls are for memory between lines", l.off.Load(), l.calls.Load())
	}
}
