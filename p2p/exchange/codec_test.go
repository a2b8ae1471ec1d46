package exchange

import (
	"bytes"
	"testing"

	"github.com/grangemesh/grange/p2p/exchange/link"
)

// TestExpandSizes expands bodies of all lengths, one after the other, by the same
// buffers.
func TestExpandSizes(t *testing.T) {
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{5000, 8000, 8192, 100_000, 128 << 10, 4097, 120_000} {
		body := bytes.Repeat([]byte{7}, n)
		packed := c.compress(body, link.Much)
		if packed == nil {
			t.Fatalf("%d equal bytes were not compressed", n)
		}
		raw, err := c.expand(*packed, n)
		if err != nil || !bytes.Equal(*raw, body) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		c.pool.Put(packed)
		c.pool.Put(raw)
	}
}
