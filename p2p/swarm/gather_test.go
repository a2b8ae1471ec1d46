package swarm

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// counting counts writes.
type counting struct {
	net.Conn
	writes atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// TestWriteIsOnePiece: what the muxer writes at once reaches the kernel at once, in order.
func TestWriteIsOnePiece(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := newTLS(libp2ptls.ID, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	var sent bytes.Buffer
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := transport.SecureInbound(t.Context(), c, "")
		if err != nil {
			return
		}
		defer s.Close()
		all, _ := io.ReadAll(s)
		got <- all
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	under := &counting{Conn: raw}
	var s sec.SecureConn
	if s, err = transport.SecureOutbound(t.Context(), under, id); err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{1, recordMax, recordMax + 1, 64 << 10, 1 << 20} {
		before := under.writes.Load()
		piece := bytes.Repeat([]byte{byte(i + 1)}, size)
		sent.Write(piece)
		if n, err := s.Write(piece); n != size || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, size, err)
		}
		if n := under.writes.Load() - before; n != 1 && size > recordMax {
			t.Errorf("%d bytes are %d writes", size, n)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, sent.Bytes()) {
		t.Error("something else came")
	}
}
