package nbd

import (
	"sync"

	"github.com/grangemesh/grange/origin/content/scratch"
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
)

// budget bounds the bytes that one connection holds in buffers.
type budget struct {
	pool *scratch.Pool // of all connections
	max  int64

	mu    sync.Mutex
	freed sync.Cond // L is &mu
	used  int64     // guarded by mu; at most max
}

func newBudget(pool *scratch.Pool, max int64) *budget {
	b := &budget{pool: pool, max: max}
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

// release gives a buffer back.
func (b *budget) release(p *[]byte) {
	n := int64(cap(*p))
	b.pool.Put(p)
	b.mu.Lock()
	b.used -= n
	b.mu.Unlock()
	b.freed.Signal()
}
