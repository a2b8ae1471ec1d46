package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// endless is the size of a file that is shown to the child: it asks for what
	// lies past the end, instead of taking it for zeros; and no whole sectors, so that
	// it asks for bytes, and the last sector is not rounded up.
	endless = 1<<62 + 1
	// pieceSize is how much of an answer is read at once, in bytes.
	pieceSize = 256 << 10
)

// server answers the child's reads of the image's file, in NBD's oldest form, which needs no negotiation.
type server struct {
	conn  *os.File
	file  File
	shape shape
	cut   atomic.Pointer[error]
}

// fault is why a read of the file was refused; nil when none was.
func (s *server) fault() error {
	if err := s.cut.Load(); err != nil {
		return *err
	}
	return nil
}

// serve answers until the connection ends, and ends it: the child would wait for an
// answer that does not come.
func (s *server) serve() {
	defer s.conn.Close()
	size := uint64(endless)
	if s.shape.atEnd {
		size = s.sectors() // QEMU waits for ever for the rest of a last one that is cut
	}
	hello := append([]byte("NBDMAGIC"), 0, 0, 0x42, 0x02, 0x81, 0x86, 0x12, 0x53)
	hello = binary.BigEndian.AppendUint64(hello, size)
	hello = binary.BigEndian.AppendUint32(hello, flagHas|flagReadOnly)
	hello = append(hello, make([]byte, 124)...)
	_, err := s.conn.Write(hello)
	for buf := make([]byte, pieceSize); err == nil; {
		err = s.answer(buf)
	}
}

func (s *server) sectors() uint64 {
	return uint64(s.file.Size()+content.SectorSize-1) / content.SectorSize * content.SectorSize
}

func (s *server) answer(buf []byte) error {
	var head [requestSize]byte
	if _, err := io.ReadFull(s.conn, head[:]); err != nil {
		return err
	}
	kind, off, n := binary.BigEndian.Uint16(head[6:]), binary.BigEndian.Uint64(head[16:]), binary.BigEndian.Uint32(head[24:])
	var refused errno
	switch size := uint64(s.file.Size()); {
	case binary.BigEndian.Uint32(head[:]) != requestMagic || kind == cmdDisconnect:
		return io.EOF
	case kind != cmdRead:
		refused = errInvalid
	case off == 0 && int64(n) <= s.shape.glance:
	case s.shape.atEnd && off <= s.sectors() && uint64(n) <= s.sectors()-off:
	case off > size || uint64(n) > size-off:
		s.fail(fmt.Errorf("it is cut short or damaged: the file ends at %d, and it says that a part of it lies at %d", s.file.Size(), off))
		refused = errIO
	}
	reply := binary.BigEndian.AppendUint32(buf[:0], simpleReply)
	reply = binary.BigEndian.AppendUint32(reply, uint32(refused))
	reply = append(reply, head[8:16]...)
	left := int64(n)
	if refused != 0 {
		left = 0
	}
	for {
		at, part := len(reply), min(left, int64(cap(buf)-len(reply)))
		reply = reply[:at+int(part)]
		got, err := s.file.ReadAt(reply[at:], int64(off))
		if err != nil && !errors.Is(err, io.EOF) {
			s.fail(err)
			return err
		}
		if off < uint64(len(s.shape.head)) {
			copy(reply[at:], s.shape.head[off:])
		}
		clear(reply[at+got:]) // past the end, in a glance or the last sector
		if _, err := s.conn.Write(reply); err != nil {
			return err
		}
		left, off, reply = left-part, off+uint64(part), buf[:0]
		if left == 0 {
			return nil
		}
	}
}

func (s *server) fail(err error) { s.cut.CompareAndSwap(nil, &err) }
