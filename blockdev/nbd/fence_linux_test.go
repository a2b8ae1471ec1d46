package nbd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/simulations/soak"
)

// ordered is a device whose writes wait for a gate, and which notes their order. Like
// a journal behind a disk that stands still it does not heed a cancelled context.
type ordered struct {
	*memory
	gate    chan struct{}
	entered chan struct{}

	mu   sync.Mutex // guards log
	log  []byte     // the first byte of each write that was made
	none bool       // TryWriteFrom takes nothing
}

func (o *ordered) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	p := make([]byte, n)
	data.ReadAt(p, 0)
	select {
	case <-o.gate:
		return !o.none && o.WriteAt(context.Background(), p, off, false) == nil
	default:
		return false
	}
}

func (o *ordered) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	select {
	case o.entered <- struct{}{}:
	default:
	}
	<-o.gate
	o.mu.Lock()
	defer o.mu.Unlock()
	o.log = append(o.log, p[0])
	copy(o.data[off:], p)
	return nil
}

func (o *ordered) after(b byte) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.log[bytes.LastIndexByte(o.log, b)+1:])
}

// TestWritesOfAClientThatIsGoneRevertNothing has a client leave writes behind, in its
// socket and at a device that stands still. Another one, connected before, then writes
// to the same place: after its reply nothing of the first is carried out. (Over TCP
// the end of a connection is known once all before it has come: so few writes there
// that they fit a socket.)
func TestWritesOfAClientThatIsGoneRevertNothing(t *testing.T) {
	for round := range soak.Rounds(1000) {
		for _, local := range []bool{true, false} {
			o := &ordered{memory: newMemory(diskSize), gate: make(chan struct{}), entered: make(chan struct{}, 1), none: round%2 == 0}
			cfg := nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": o}), RequestsMax: 8}
			uri, writes := start(t, cfg, "disk"), 40
			if !local {
				uri, writes = startTCP(t, cfg, "disk"), 10
			}
			a, b := dial(t, uri), dial(t, uri)
			old, fresh := bytes.Repeat([]byte{0xaa}, pageSize), bytes.Repeat([]byte{0xbb}, pageSize)
			for range writes {
				a.ask(cmdWrite, 0, 0, pageSize, old...)
			}
			<-o.entered
			hangUp(t, a.conn)
			b.ask(cmdWrite, 0, 0, pageSize, fresh...)
			close(o.gate)
			if got := b.answer(); got.code != 0 {
				t.Fatalf("the write of the client that is there: error %d", got.code)
			}
			if got := b.do(cmdFlush, 0, 0, 0); got.code != 0 {
				t.Fatalf("flush: error %d", got.code)
			}
			if got := b.do(cmdRead, 0, 0, pageSize); !bytes.Equal(got.data, fresh) {
				t.Fatalf("round %d, local %v: an acknowledged write was reverted to %#x", round, local, got.data[0])
			}
			if late := o.after(0xbb); len(late) > 0 {
				t.Fatalf("round %d: %d writes of the client that is gone after the reply", round, len(late))
			}
		}
	}
}

// TestManyClientsThatComeAndGo has clients write to one place over several connections
// each, and vanish at any moment; whoever comes next and is answered has the last word.
func TestManyClientsThatComeAndGo(t *testing.T) {
	o := &ordered{memory: newMemory(diskSize), gate: make(chan struct{}), entered: make(chan struct{}, 1)}
	close(o.gate)
	uri := serveDisk(t, o)
	const connections = 4
	for round := range soak.Rounds(1000) {
		var all []*client
		for range connections {
			all = append(all, dial(t, uri))
		}
		old := bytes.Repeat([]byte{byte(round)}, pageSize)
		for i := range 64 {
			all[i%connections].ask(cmdWrite, 0, 0, pageSize, old...)
		}
		next := dial(t, uri)
		for _, c := range all {
			c.conn.Close()
		}
		fresh := bytes.Repeat([]byte{byte(round + 1)}, pageSize)
		if got := next.do(cmdWrite, 0, 0, pageSize, fresh...); got.code != 0 {
			t.Fatalf("error %d", got.code)
		}
		for range 3 {
			if got := next.do(cmdRead, 0, 0, pageSize); !bytes.Equal(got.data, fresh) {
				t.Fatalf("round %d: an acknowledged write was reverted to %#x", round, got.data[0])
			}
		}
		next.conn.Close()
	}
}

// hangUp closes a connection, and returns when the other end's kernel knows it.
func hangUp(t *testing.T, conn net.Conn) {
	t.Helper()
	if tcp, ok := conn.(*net.TCPConn); ok {
		raw, err := tcp.SyscallConn()
		if err == nil {
			err = tcp.CloseWrite()
		}
		for known := false; err == nil && !known; {
			err = raw.Control(func(fd uintptr) {
				info, ierr := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
				known = ierr != nil || info.State != unix.BPF_TCP_ESTABLISHED && info.State != unix.BPF_TCP_FIN_WAIT1
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

// startTCP is start on a TCP port.
func startTCP(tb testing.TB, cfg nbd.Config, name string) string {
	tb.Helper()
	l, err := nbd.Listen(tb.Context(), "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	cfg.Listeners = append(cfg.Listeners, l)
	start(tb, cfg, name)
	return nbd.URI(l.Addr(), name)
}
