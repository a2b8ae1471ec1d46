package swarm

import (
	"context"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"

	"github.com/grangemesh/grange/origin/content/scratch"
)

// gathering is TLS that hands the kernel what one Write makes in one piece. By itself it
// makes a system call of each record of 16 KiB, and the network a packet of each.
type gathering struct {
	*libp2ptls.Transport
	pieces *scratch.Pool // memory that a connection has for one Write
}

func newTLS(id protocol.ID, key crypto.PrivKey, muxers []upgrader.StreamMuxer) (gathering, error) {
	t, err := libp2ptls.New(id, key, muxers)
	return gathering{t, new(scratch.Pool)}, err
}

func (t gathering) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	under := &gathered{Conn: c}
	s, err := t.Transport.SecureInbound(ctx, under, p)
	return &gatherer{s, under, t.pieces}, err
}

func (t gathering) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	under := &gathered{Conn: c}
	s, err := t.Transport.SecureOutbound(ctx, under, p)
	return &gatherer{s, under, t.pieces}, err
}

// gatherer is the connection above TLS. The muxer writes from one goroutine.
type gatherer struct {
	sec.SecureConn
	under  *gathered
	pieces *scratch.Pool
}

// recordMax is what one TLS record carries; what fits needs no gathering.
const recordMax = 16 << 10

func (c *gatherer) Write(p []byte) (int, error) {
	if len(p) <= recordMax {
		return c.SecureConn.Write(p)
	}
	piece := c.pieces.Get(len(p) + len(p)/64) // more than the records' heads and tags
	defer c.pieces.Put(piece)
	c.under.mu.Lock()
	c.under.piece = (*piece)[:0]
	c.under.mu.Unlock()
	n, err := c.SecureConn.Write(p)
	if failed := c.under.end(); err == nil {
		err = failed
	}
	return n, err
}

// Close does not wait to say goodbye behind a piece that nobody takes, as TLS does not.
func (c *gatherer) Close() error {
	if !c.under.mu.TryLock() {
		return c.under.Conn.Close()
	}
	c.under.mu.Unlock()
	return c.SecureConn.Close()
}

// gathered is the connection below TLS.
type gathered struct {
	net.Conn

	mu     sync.Mutex // guards what follows
	piece  []byte     // nil while nothing is gathered
	failed error      // of a write that TLS was not told of: what follows would make no sense
}

func (c *gathered) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		_, c.failed = c.Conn.Write(c.piece)
	}
	c.piece = nil
	return c.failed
}

// Write is called by the Write above, and by TLS of its own accord.
func (c *gathered) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.failed != nil:
		return 0, c.failed
	case c.piece == nil:
		return c.Conn.Write(p)
	}
	c.piece = append(c.piece, p...)
	return len(p), nil
}
