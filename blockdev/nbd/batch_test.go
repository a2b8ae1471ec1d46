package nbd_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/grangemesh/grange/blockdev"
)

// batching is a disk that takes batches, of which it makes the first few writes only.
type batching struct {
	*memory

	mu      sync.Mutex
	batches []int // their lengths
	takes   int
}

func (b *batching) TryWriteBatch(ws []blockdev.Write) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches = append(b.batches, len(ws))
	for i, w := range ws {
		if i == b.takes || !b.memory.write(w.Data, w.Offset) {
			return i
		}
	}
	return len(ws)
}

func (b *batching) TryWriteFrom(io.ReaderAt, int, int64) bool { panic("a write alone") }

// TestWritesThatCameTogether sends writes at once, with others between them: the device
// gets those that follow each other as one batch, each is answered once, and what it does
// not take at once is made all the same.
func TestWritesThatCameTogether(t *testing.T) {
	for _, takes := range []int{1000, 3, 0} {
		disk := &batching{memory: newMemory(diskSize), takes: takes}
		c := dial(t, serveDisk(t, disk))
		want := make([]byte, diskSize)
		gathered := &gather{Conn: c.conn}
		c.conn = gathered
		for i := range 40 {
			off, flags := uint64(i%31)*pageSize, uint16(0)
			page := bytes.Repeat([]byte{byte(i + 1)}, pageSize)
			switch i {
			case 10:
				c.ask(cmdFlush, 0, 0, 0)
			case 20:
				flags = flagFUA
			case 31: // what follows overwrites
				gathered.send()
				for len(c.asked) > 0 {
					if got := c.answer(); got.code != 0 {
						t.Fatalf("error %d", got.code)
					}
				}
			}
			c.ask(cmdWrite, flags, off, pageSize, page...)
			copy(want[off:], page)
		}
		c.ask(cmdWrite, 0, diskSize, pageSize, make([]byte, pageSize)...) // beyond the end
		gathered.send()
		refused := 0
		for len(c.asked) > 0 {
			if got := c.answer(); got.code == enospc {
				refused++
			} else if got.code != 0 {
				t.Fatalf("error %d", got.code)
			}
		}
		if refused != 1 || !disk.equal(want) {
			t.Errorf("takes %d: %d refused; the disk has what was written: %v", takes, refused, disk.equal(want))
		}
		total, most := 0, 0
		for _, n := range disk.batches {
			total, most = total+n, max(most, n)
		}
		if total != 39 || most < 9 {
			t.Errorf("takes %d: batches of %v", takes, disk.batches)
		}
	}
}

// gather keeps what is sent until send.
type gather struct {
	net.Conn
	b []byte
}

func (g *gather) Write(p []byte) (int, error) {
	g.b = append(g.b, p...)
	return len(p), nil
}

func (g *gather) send() {
	for b := g.b; len(b) > 0; {
		n, err := g.Conn.Write(b)
		if err != nil {
			return // the reader says so
		}
		b = b[n:]
	}
	g.b = nil
}
