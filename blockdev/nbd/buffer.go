package nbd

import (
	"math/bits"
	"sync"
)

const (
	// batchSize is the size of the buffers that requests are read into and
	// replies are gathered in. Larger ones fall out of the processor's nearer
	// cache and gain nothing.
	batchSize = 256 << 10
	// gatherMax is how much is gathered before it is sent though more requests
	// are at hand: so the client works on the first replies of a batch while the
	// server works on the last. Four replies of 4 KiB are worth a write.
	gatherMax = 16 << 10
	// headRoom is what a buffer holds beyond its class: the heads of a reply.
	headRoom = 64

	classMin = 12 // 4 KiB
	classMax = 25 // payloadMax
)

// buffer is a piece of memory of a size class. It is charged to the budget it
// was taken under until it is released.
type buffer struct {
	// p is what is in use; its capacity is the class and headRoom.
	p      []byte
	class  int
	pool   *pool
	charge *budget
}

// size is what the buffer costs.
func (b *buffer) size() int64 { return 1<<b.class + headRoom }

func (b *buffer) release() {
	charge := b.charge
	b.p, b.charge = b.p[:0], nil
	size := b.size()
	b.pool.classes[b.class-classMin].Put(b)
	if charge != nil {
		charge.release(size)
	}
}

// pool keeps buffers by size; the garbage collector empties it.
type pool struct {
	classes [classMax - classMin + 1]sync.Pool
}

// take returns an empty buffer with room for n bytes and headRoom.
func (p *pool) take(n int) *buffer {
	class := max(bits.Len(uint(n-1)), classMin)
	if b, _ := p.classes[class-classMin].Get().(*buffer); b != nil {
		return b
	}
	return &buffer{p: make([]byte, 0, 1<<class+headRoom), class: class, pool: p}
}

// budget bounds the bytes that one connection holds.
type budget struct {
	max int64

	mu    sync.Mutex
	freed sync.Cond // L is &mu
	used  int64     // guarded by mu; at most max
}

func newBudget(max int64) *budget {
	b := &budget{max: max}
	b.freed.L = &b.mu
	return b
}

// try takes n bytes if they are there.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > b.max {
		return false
	}
	b.used += n
	return true
}

// wait takes n bytes, once they are there: others that hold some must not wait
// for the caller.
func (b *budget) wait(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used+n > b.max {
		b.freed.Wait()
	}
	b.used += n
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	b.used -= n
	b.mu.Unlock()
	b.freed.Signal()
}
