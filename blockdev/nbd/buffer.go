package nbd

import (
	"golang.org/x/sync/semaphore"

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

// budget bounds the bytes that one connection holds in buffers. Only its reader acquires.
type budget struct {
	*semaphore.Weighted
	pool *scratch.Pool // of all connections
}

func (b *budget) release(p *[]byte) {
	n := int64(cap(*p))
	b.pool.Put(p)
	b.Release(n)
}
