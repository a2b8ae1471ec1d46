package wire

import (
	"fmt"
	"math/bits"
	"sync"
)

// Pool lends buffers for bodies, so that a transfer does not allocate a chunk's
// length for each chunk. The zero value is ready; safe for concurrent use.
type Pool struct{ classes [poolClasses]sync.Pool }

const (
	// poolMin and poolMax are the powers of two of the smallest and the largest
	// buffer: 4 KiB, the smallest chunk, and BodySizeMax.
	poolMin     = 12
	poolMax     = 20
	poolClasses = poolMax - poolMin + 1
)

// Buffer is lent by a Pool.
type Buffer struct {
	B     []byte
	class int
}

// Get lends a buffer with n bytes of any content in B; n is at most BodySizeMax.
func (p *Pool) Get(n int) *Buffer {
	if n < 0 || n > BodySizeMax {
		panic(fmt.Sprintf("wire: buffer of %d bytes; the limit is %d", n, BodySizeMax))
	}
	class := max(0, bits.Len(uint(max(n, 1)-1))-poolMin)
	if b, ok := p.classes[class].Get().(*Buffer); ok {
		b.B = b.B[:n]
		return b
	}
	return &Buffer{make([]byte, n, 1<<(class+poolMin)), class}
}

// Put takes a buffer back; nobody may use it from here on.
func (p *Pool) Put(b *Buffer) { p.classes[b.class].Put(b) }
