// Package scratch lends memory for the length of a request or a transfer.
package scratch

import (
	"math/bits"
	"sync"
)

const (
	// bitsMin and bitsMax are the powers of two of the smallest and the largest buffer that is kept: 4 KiB,
	// what guests mostly ask for and the smallest chunk, and 32 MiB, the longest request of a disk's client.
	bitsMin = 12
	bitsMax = 25
	// headRoom is what each has beyond that: a block often has a head, and some of them have
	// one each. The memory that Go takes for it is the same with less.
	headRoom = 256
)

// Pool keeps buffers by size, until the garbage collector wants them. The zero value
// is ready; safe for concurrent use.
type Pool struct {
	classes [bitsMax - bitsMin + 1]sync.Pool
}

// Get lends n bytes of any content, in at most twice as many, or 4 KiB, and 64.
func (p *Pool) Get(n int) *[]byte {
	class := classOf(n)
	if class >= len(p.classes) {
		return new(make([]byte, n))
	}
	if b, ok := p.classes[class].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	return new(make([]byte, n, 1<<(class+bitsMin)+headRoom))
}

// Put takes back what Get has lent; nobody may use it from here on. What has another
// capacity by now is left to the garbage collector.
func (p *Pool) Put(b *[]byte) {
	if class := classOf(cap(*b)); class < len(p.classes) && cap(*b) == 1<<(class+bitsMin)+headRoom {
		p.classes[class].Put(b)
	}
}

// classOf is the class of the buffers that hold n bytes.
func classOf(n int) int { return max(0, bits.Len(uint(max(n-headRoom, 1)-1))-bitsMin) }
