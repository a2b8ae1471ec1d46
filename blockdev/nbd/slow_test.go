package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
)

// slowFrom is where a slow device begins to make its callers wait.
const slowFrom = diskSize / 2

// slow answers calls at slowFrom and beyond once its gate is open.
type slow struct {
	*memory
	gate    chan struct{} // closed: open
	entered chan int64    // the offset of each call that waits
	ended   chan error    // how each of them ended, if not nil
}

func newSlow() *slow {
	return &slow{memory: newMemory(diskSize).fill(), gate: make(chan struct{}), entered: make(chan int64, 1024)}
}

func (s *slow) wait(ctx context.Context, off int64) error {
	if off < slowFrom {
		return nil
	}
	s.entered <- off
	var err error
	select {
	case <-s.gate:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if s.ended != nil {
		s.ended <- err
	}
	return err
}

func (s *slow) TryReadAt(p []byte, off int64) bool {
	return off < slowFrom && s.memory.TryReadAt(p, off)
}

func (s *slow) TryWriteBatch(ws []blockdev.Write) int {
	for i, w := range ws {
		if w.Offset >= slowFrom || s.memory.WriteAt(context.Background(), w.Data, w.Offset, false) != nil {
			return i
		}
	}
	return len(ws)
}

func (s *slow) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	return off < slowFrom && s.memory.TryWriteFrom(data, n, off)
}

func (s *slow) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.wait(ctx, off); err != nil {
		return err
	}
	return s.memory.ReadAt(ctx, p, off)
}

func (s *slow) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := s.wait(ctx, off); err != nil {
		return err
	}
	return s.memory.WriteAt(ctx, p, off, fua)
}

func TestSlowRequestsDelayOnlyThemselves(t *testing.T) {
	disk := newSlow()
	c := dial(t, serveDisk(t, disk))
	for i := range uint64(63) {
		c.ask(cmdRead, 0, slowFrom+i*pageSize, pageSize)
	}
	for range 63 {
		<-disk.entered
	}
	var worst time.Duration
	for range 100 {
		began := time.Now()
		if a := c.do(cmdRead, 0, 0, pageSize); a.code != 0 || !bytes.Equal(a.data, disk.data[:pageSize]) {
			t.Fatalf("the fast read: error %d, or other bytes", a.code)
		}
		worst = max(worst, time.Since(began))
	}
	t.Logf("slowest of 100 reads beside 63 blocked: %v", worst)
	close(disk.gate)
	for range 63 {
		a := c.answer()
		off := slowFrom + (a.cookie-1)*pageSize
		if a.code != 0 || !bytes.Equal(a.data, disk.data[off:off+pageSize]) {
			t.Errorf("read at %d: error %d, or other bytes", off, a.code)
		}
	}
}

func TestRequestsBeyondTheLimitWait(t *testing.T) {
	disk := newSlow()
	uri := start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk}), RequestsMax: 4}, "disk")
	c := dial(t, uri)
	for i := range uint64(8) {
		c.ask(cmdRead, 0, slowFrom+i*pageSize, pageSize)
	}
	for range 4 {
		<-disk.entered
	}
	d := dial(t, uri) // another connection has its own limit
	if a := d.do(cmdRead, 0, 0, 512); a.code != 0 {
		t.Fatalf("error %d", a.code)
	}
	if n := len(disk.entered); n > 0 {
		t.Fatalf("%d requests beyond the limit reached the device", n)
	}
	close(disk.gate)
	for range 8 {
		if a := c.answer(); a.code != 0 {
			t.Errorf("error %d", a.code)
		}
	}
}

func TestClientThatDoesNotReadIsBounded(t *testing.T) {
	disk := newMemory(64 << 20).fill()
	const budget = 33 << 20
	s, uri := startServer(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk}), BytesMax: budget}, "disk")
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(s.Collectors()...)
	lazy := dial(t, uri)
	const requests = 1000 // 250 MiB of replies: far more than the budget
	sent := make(chan error, 1)
	go func() {
		var b []byte
		for i := range uint64(requests) {
			b = append(b, lazy.request(i+1, cmdRead, 0, i%128*(256<<10), 256<<10)...)
		}
		_, err := lazy.conn.Write(b)
		sent <- err
	}()
	other := dial(t, uri)
	for range 100 {
		if a := other.do(cmdRead, 0, 0, pageSize); a.code != 0 {
			t.Fatalf("beside it: error %d", a.code)
		}
	}
	if got := metric(t, registry, "grange_nbd_bytes_total", "read"); got > budget+3<<20 { // the socket holds up to 2 MiB, the other client got 400 KiB
		t.Errorf("%v bytes were read for a client that takes none, want at most %d", got, budget)
	}
	for i := range uint64(requests) {
		lazy.asked[i+1] = ask{cmdRead, i % 128 * (256 << 10), 256 << 10}
	}
	for range requests {
		a := lazy.answer()
		off := (a.cookie - 1) % 128 * (256 << 10)
		if a.code != 0 || !bytes.Equal(a.data, disk.data[off:off+256<<10]) {
			t.Fatalf("request %d: error %d, or other bytes", a.cookie, a.code)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestVanishedClientCancelsItsRequests(t *testing.T) {
	for _, command := range []uint16{cmdRead, cmdWrite} {
		disk := newSlow()
		disk.ended = make(chan error, 1)
		shelf := newShelf(map[string]blockdev.Device{"disk": disk})
		s, uri := startServer(t, nbd.Config{Exports: shelf}, "disk")
		c := dial(t, uri)
		var payload []byte
		if command == cmdWrite {
			payload = make([]byte, pageSize)
		}
		c.ask(command, 0, slowFrom, pageSize, payload...)
		<-disk.entered
		c.conn.Close()
		if err := <-disk.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("command %d ended with %v, want it cancelled", command, err)
		}
		if err := s.Detach(t.Context(), "disk"); err != nil {
			t.Error(err)
		}
		if n := shelf.opened("disk"); n != 0 {
			t.Errorf("%d devices are still open", n)
		}
	}
}

func TestClientThatVanishesAmidARequest(t *testing.T) {
	disk := newMemory(diskSize).fill()
	before := bytes.Clone(disk.data)
	shelf := newShelf(map[string]blockdev.Device{"disk": disk})
	s, uri := startServer(t, nbd.Config{Exports: shelf}, "disk")
	write := (&client{}).request(1, cmdWrite, 0, 0, pageSize)
	for _, part := range [][]byte{write[:1], write[:27], write, append(write, make([]byte, pageSize-1)...)} {
		c := dial(t, uri)
		c.send(part)
		c.conn.Close()
	}
	big := dial(t, uri)
	big.send(big.request(1, cmdWrite, 0, 0, 1<<20), make([]byte, 1<<19))
	big.conn.Close()
	if err := s.Detach(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	if n := shelf.opened("disk"); n != 0 {
		t.Errorf("%d devices are still open", n)
	}
	if !disk.equal(before) {
		t.Error("half a write changed the device")
	}
}

func TestDisconnectWaitsForWhatIsInFlight(t *testing.T) {
	disk := newSlow()
	c := dial(t, serveDisk(t, disk))
	c.ask(cmdRead, 0, slowFrom, pageSize)
	c.send(c.request(99, cmdDisconnect, 0, 0, 0))
	<-disk.entered
	close(disk.gate)
	if a := c.answer(); a.code != 0 || !bytes.Equal(a.data, disk.data[slowFrom:slowFrom+pageSize]) {
		t.Errorf("error %d, or other bytes", a.code)
	}
	c.ended()
}

func TestDetachDrainsOpenConnections(t *testing.T) {
	disk, other := newSlow(), newMemory(diskSize)
	shelf := newShelf(map[string]blockdev.Device{"disk": disk, "other": other})
	s, uri := startServer(t, nbd.Config{Exports: shelf}, "disk")
	busy, idle, half := dial(t, uri), dial(t, uri), greet(t, uri)
	beside := greet(t, uri)
	beside.open("other")
	payload := bytes.Repeat([]byte{9}, pageSize)
	busy.ask(cmdWrite, 0, slowFrom, pageSize, payload...)
	<-disk.entered

	shelf.remove("disk")
	detached := make(chan error, 1)
	go func() { detached <- s.Detach(t.Context(), "disk") }()
	idle.ended()
	select {
	case err := <-detached:
		t.Fatalf("detached beside a request in flight: %v", err)
	default:
	}
	close(disk.gate)
	got := make([]byte, pageSize)
	if a := busy.answer(); a.code != 0 || disk.memory.ReadAt(t.Context(), got, slowFrom) != nil || !bytes.Equal(got, payload) {
		t.Errorf("the request in flight: error %d, or other bytes on the device", a.code)
	}
	busy.ended()
	if err := <-detached; err != nil {
		t.Errorf("detach: %v", err)
	}
	if n := shelf.opened("disk"); n != 0 {
		t.Errorf("%d devices are still open", n)
	}
	if got := half.option(optGo, pack(counted("disk"), uint16(0))); got[0].kind != errUnknown {
		t.Errorf("go to the detached: %v", got)
	}
	if a := beside.do(cmdRead, 0, 0, 512); a.code != 0 {
		t.Errorf("the other export: error %d", a.code)
	}
}

func TestDetachCancelsWhatTakesTooLong(t *testing.T) {
	disk := newSlow()
	shelf := newShelf(map[string]blockdev.Device{"disk": disk})
	s, uri := startServer(t, nbd.Config{Exports: shelf}, "disk")
	c := dial(t, uri)
	c.ask(cmdWrite, 0, slowFrom, pageSize, make([]byte, pageSize)...)
	<-disk.entered
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Detach(ctx, "disk"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("detach: %v, want the deadline", err)
	}
	if n := shelf.opened("disk"); n != 0 {
		t.Errorf("%d devices are still open", n)
	}
}

// TestReadsThatWaitAreCut: a connection that is ended, with reads in flight that wait for
// their bytes, closes at once, and answers none of them: its client asks again. What it
// wrote is answered.
func TestReadsThatWaitAreCut(t *testing.T) {
	disk := newSlow()
	s, uri := startServer(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk})}, "disk")
	c := dial(t, uri)
	c.ask(cmdRead, 0, slowFrom, pageSize)
	c.ask(cmdRead, 0, slowFrom+100, 1000) // of parts of blocks
	c.ask(cmdCache, 0, slowFrom, pageSize)
	c.ask(cmdWrite, 0, slowFrom+10, 10, make([]byte, 10)...) // the rest of its block has to be read
	for range 4 {
		<-disk.entered
	}
	if a := c.do(cmdWrite, 0, 0, 512, make([]byte, 512)...); a.code != 0 {
		t.Errorf("a write beside: error %d", a.code)
	}
	if err := s.Detach(t.Context(), "disk"); err != nil {
		t.Errorf("detach: %v", err)
	}
	c.ended()
}

// journal counts what a flush made durable.
type journal struct {
	*memory
	written, durable atomic.Int64
}

func (j *journal) TryWriteFrom(data io.ReaderAt, n int, off int64) bool {
	defer j.written.Add(1)
	return j.memory.TryWriteFrom(data, n, off)
}

func (j *journal) WriteAt(_ context.Context, p []byte, off int64, _ bool) error {
	j.TryWriteFrom(bytes.NewReader(p), len(p), off)
	return nil
}

func (j *journal) Flush(context.Context) error {
	j.durable.Store(j.written.Load())
	return nil
}

func TestFlushCoversWritesOfAllConnections(t *testing.T) {
	disk := &journal{memory: newMemory(diskSize)}
	uri := serveDisk(t, disk)
	flusher := dial(t, uri)
	clients := []*client{dial(t, uri), dial(t, uri), dialSimple(t, uri)}
	for round := range 50 {
		var wg sync.WaitGroup
		for i, c := range clients {
			wg.Go(func() {
				flags := uint16(round % 2) // FUA goes another way
				if a := c.do(cmdWrite, flags, uint64(i)*pageSize, 512, make([]byte, 512)...); a.code != 0 {
					t.Errorf("write: error %d", a.code)
				}
			})
		}
		wg.Wait()
		if a := flusher.do(cmdFlush, 0, 0, 0); a.code != 0 {
			t.Fatalf("flush: error %d", a.code)
		}
		if got, want := disk.durable.Load(), int64((round+1)*len(clients)); got != want {
			t.Fatalf("%d of %d answered writes are durable", got, want)
		}
	}
}

func TestPipelinedRequestsKeepTheirCookies(t *testing.T) {
	disk := newSlow()
	close(disk.gate) // slow, that is on goroutines, but never waiting
	c := dial(t, serveDisk(t, disk))
	const rounds, depth = 20, 200
	for range rounds {
		var b []byte
		for i := range uint64(depth) {
			off := i * 37 % (diskSize / pageSize) * pageSize
			c.cookie++
			c.asked[c.cookie] = ask{cmdRead, off, pageSize}
			b = append(b, c.request(c.cookie, cmdRead, 0, off, pageSize)...)
		}
		for len(b) > 0 { // in pieces that cut requests anywhere
			n := min(len(b), 101)
			c.send(b[:n])
			b = b[n:]
		}
		for range depth {
			cookies := make(map[uint64]ask, len(c.asked))
			for k, v := range c.asked {
				cookies[k] = v
			}
			a := c.answer()
			off := cookies[a.cookie].offset
			if a.code != 0 || binary.BigEndian.Uint64(a.data) != binary.BigEndian.Uint64(disk.data[off:]) {
				t.Fatalf("read at %d: error %d, or another's bytes", off, a.code)
			}
		}
	drain:
		for {
			select {
			case <-disk.entered:
			default:
				break drain
			}
		}
	}
}

func TestOverNetPipe(t *testing.T) {
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	disk := newMemory(diskSize).fill()
	start(t, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk}), Listeners: []net.Listener{l}}, "disk")
	c := &client{TB: t, conn: l.dial(), asked: map[uint64]ask{}}
	defer c.conn.Close()
	c.in = newReader(c.conn)
	c.bytes(18)
	c.send(uint32(3))
	c.open("disk")
	for i := range uint64(100) {
		if a := c.do(cmdRead, 0, i*pageSize, pageSize); a.code != 0 || !bytes.Equal(a.data, disk.data[i*pageSize:(i+1)*pageSize]) {
			t.Fatalf("read %d: error %d, or other bytes", i, a.code)
		}
	}
}

// pipes is a listener of connections without file descriptors.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: os.DevNull, Net: "unix"} }

// opening is a shelf with an export that nobody gets in to yet.
type opening struct {
	*shelf
	come chan struct{}
}

func (o *opening) Lookup(ctx context.Context, name string) (blockdev.Device, func(), error) {
	o.come <- struct{}{}
	<-ctx.Done()
	return nil, nil, fmt.Errorf("device %q: %w", name, context.Cause(ctx))
}

// TestDetachWaitsForNobodyOutside: a client that waits to be let in may wait for the very end of
// the detach, which ends its connection.
func TestDetachWaitsForNobodyOutside(t *testing.T) {
	shelf := &opening{newShelf(nil), make(chan struct{})}
	s, uri := startServer(t, nbd.Config{Exports: shelf}, "disk")
	c := greet(t, uri)
	c.send("IHAVEOPT", uint32(optGo), uint32(10), counted("disk"), uint16(0))
	<-shelf.come
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Detach(ctx, "disk"); err != nil {
		t.Errorf("detach: %v", err)
	}
}
