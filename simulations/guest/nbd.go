package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"syscall"
)

// Export reads a disk over NBD, with any number of reads at once. Safe for concurrent use.
type Export struct {
	conn net.Conn
	// Size is the export's.
	Size int64

	mu      sync.Mutex // guards what follows, and that requests are written whole
	cookie  uint64
	pending map[uint64]*pendingRead
	failed  error // that no answer comes any more
	ended   chan struct{}
}

type pendingRead struct {
	p    []byte
	done chan error
}

// DialNBD opens an export as the command line names it: nbd+unix:///NAME?socket=PATH.
func DialNBD(ctx context.Context, device string) (*Export, error) {
	u, err := url.Parse(device)
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", u.Query().Get("socket"))
	if err != nil {
		return nil, err
	}
	size, _, err := openExport(conn, u.Path[1:])
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d := &Export{conn: conn, Size: int64(size), pending: map[uint64]*pendingRead{}, ended: make(chan struct{})}
	go d.receive()
	return d, nil
}

// Close ends the connection; what was not answered fails.
func (d *Export) Close() error {
	err := d.conn.Close()
	<-d.ended
	return err
}

// ReadAt reads all of p; an error of the server is a syscall.Errno.
func (d *Export) ReadAt(p []byte, off int64) (int, error) {
	r := &pendingRead{p, make(chan error, 1)}
	if err := d.send(r, off); err != nil {
		return 0, err
	}
	if err := <-r.done; err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *Export) send(r *pendingRead, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil {
		return d.failed
	}
	d.cookie++
	d.pending[d.cookie] = r
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = append(b, 0, 0, 0, 0) // no flags, a read
	b = binary.BigEndian.AppendUint64(b, d.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	_, err := d.conn.Write(binary.BigEndian.AppendUint32(b, uint32(len(r.p))))
	return err
}

// receive gives answers to those who wait for them, until the connection ends.
func (d *Export) receive() {
	defer close(d.ended)
	for {
		if err := d.answer(); err != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.failed = err
			for _, r := range d.pending {
				r.done <- err
			}
			return
		}
	}
}

func (d *Export) answer() error {
	var reply [16]byte
	if _, err := io.ReadFull(d.conn, reply[:]); err != nil {
		return err
	}
	cookie := binary.BigEndian.Uint64(reply[8:])
	d.mu.Lock()
	r := d.pending[cookie]
	delete(d.pending, cookie)
	d.mu.Unlock()
	if r == nil || binary.BigEndian.Uint32(reply[:]) != 0x67446698 {
		return fmt.Errorf("an answer to something else: %x", reply)
	}
	if code := binary.BigEndian.Uint32(reply[4:]); code != 0 {
		r.done <- syscall.Errno(code)
		return nil
	}
	_, err := io.ReadFull(d.conn, r.p)
	r.done <- err
	return err
}

// openExport does what comes before the first request, in the oldest way.
func openExport(conn io.ReadWriter, name string) (size uint64, flags uint16, err error) {
	var hello [18]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return 0, 0, err
	}
	b := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x01"...)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(name))), name...)
	if _, err := conn.Write(b); err != nil {
		return 0, 0, err
	}
	var export [10]byte
	if _, err := io.ReadFull(conn, export[:]); err != nil {
		return 0, 0, fmt.Errorf("open the export %q: %w", name, err)
	}
	return binary.BigEndian.Uint64(export[:]), binary.BigEndian.Uint16(export[8:]), nil
}
