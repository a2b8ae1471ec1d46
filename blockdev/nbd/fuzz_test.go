package nbd_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/nbd"
)

// FuzzConversation lets a client say anything: the server ends the conversation
// in its own time, and its device, an oracle, never sees a call out of bounds.
func FuzzConversation(f *testing.F) {
	hello := pack(uint32(3))
	structured := pack("IHAVEOPT", uint32(optStructured), uint32(0))
	open := pack("IHAVEOPT", uint32(optGo), uint32(10), counted("disk"), uint16(0))
	context := meta("disk", "base:allocation")
	status := pack("IHAVEOPT", uint32(optSetMeta), uint32(len(context)), context)
	request := (&client{}).request
	write := append(request(2, cmdWrite, 0, 0, 512), make([]byte, 512)...)
	for _, conversation := range [][][]byte{
		{hello, open, request(1, cmdRead, 0, 0, 4096), write, request(3, cmdFlush, 0, 0, 0), request(4, cmdDisconnect, 0, 0, 0)},
		{hello, structured, status, open, request(1, cmdBlockStatus, flagReqOne, 0, 1<<20), request(2, cmdRead, flagDF, 512, 8192)},
		{hello, structured, open, request(1, cmdTrim, 0, 0, 4096), request(2, cmdWriteZeroes, flagNoHole, 4096, 4096), request(3, cmdCache, 0, 0, 4096)},
		{hello, pack("IHAVEOPT", uint32(optList), uint32(0)), pack("IHAVEOPT", uint32(optAbort), uint32(0))},
		{pack(uint32(0)), pack("IHAVEOPT", uint32(optExportName), uint32(4), "disk"), request(1, cmdRead, 0, 1<<63, 1<<31)},
	} {
		var b []byte
		for _, part := range conversation {
			b = append(b, part...)
		}
		f.Add(b)
	}
	disk := newMemory(1 << 20)
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	start(f, nbd.Config{Exports: newShelf(map[string]blockdev.Device{"disk": disk}), Listeners: []net.Listener{l}}, "disk")
	f.Fuzz(func(t *testing.T, said []byte) {
		conn := l.dial()
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		heard := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, conn)
			heard <- err
		}()
		conn.Write(said)
		conn.Close()
		if err := <-heard; isTimeout(err) {
			t.Fatal("the server does not let go")
		}
	})
}
