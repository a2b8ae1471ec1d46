package attack

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/netns"
)

// hostile is a libp2p host of this process on a host of the lab.
type hostile struct {
	host.Host
	at       *netns.Host
	mesh     trust.PublicKey
	exchange *exchange.Exchange
}

// conduct is how a hostile host deals with those who ask it.
type conduct struct {
	server   exchange.Server
	answerer exchange.Answerer
	// dht answers what the DHT asks.
	dht network.StreamHandler
	// mute accepts streams of the exchange and says nothing, not even hello.
	mute bool
	// from is the address to dial from, where the host has several.
	from net.IP
}

// dialer dials from a host of the lab.
type dialer struct {
	at   *netns.Host
	from net.IP
}

// DialContext implements tcp.ContextDialer.
func (d dialer) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = d.at.Inside(func() error {
		var dial net.Dialer
		if d.from != nil {
			dial.LocalAddr = &net.TCPAddr{IP: d.from}
		}
		conn, err = dial.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// enter puts a hostile host onto a host of the lab, until the test ends.
func (i insight) enter(t *testing.T, at *netns.Host, signer trust.Signer, c conduct) *hostile {
	t.Helper()
	h, err := libp2p.New(
		libp2p.Identity(libp2pKey(t, signer.Key)), libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport(), tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) { return dialer{at, c.from}, nil })),
	)
	if err != nil {
		t.Fatal(err)
	}
	out := &hostile{Host: h, at: at, mesh: i.mesh}
	t.Cleanup(func() { h.Close() })
	err = at.Inside(func() error {
		return h.Network().Listen(ma.StringCast(fmt.Sprintf("/ip4/%s/tcp/0", at.Addr())))
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.dht != nil {
		h.SetStreamHandler(i.dhtProtocol(), c.dht)
	}
	if c.mute {
		h.SetStreamHandler(i.exchangeProtocol(), func(s network.Stream) { io.Copy(io.Discard, s) })
		return out
	}
	i.speak(t, out, signer, c)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { ended <- out.exchange.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return out
}

// infoOf is where a node of the lab is to be found.
func infoOf(t *testing.T, n *lab.Node) peer.AddrInfo {
	t.Helper()
	self := get[api.Status](t, n, "/api/status").Self
	info, err := peer.AddrInfoFromString(self.Addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	return *info
}

// visit connects with nodes, which must let it.
func (h *hostile) visit(t *testing.T, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		if err := h.Connect(t.Context(), infoOf(t, n)); err != nil {
			t.Fatalf("the attacker does not reach %s: %v", n.Name, err)
		}
	}
}

// prove shows nodes what certificate the host has, by asking them something.
func (h *hostile) prove(t *testing.T, nodes ...*lab.Node) {
	t.Helper()
	for _, n := range nodes {
		if _, err := h.exchange.Call(t.Context(), infoOf(t, n).ID, "resolve", resolveBody(content.KindImage, "none")); err == nil {
			t.Errorf("%s knows an image that is not there", n.Name)
		}
	}
}

// staller answers every request with signs of progress, for ever.
type staller struct {
	// bitmaps sends what it claims to hold; nil says that it knows nothing.
	bitmaps func(ctx context.Context, send func(*content.Bitmap) error) error

	introduced, asked atomic.Int64
}

// Want implements exchange.Server.
func (s *staller) Want(ctx context.Context, _ exchange.Peer, _ exchange.Request, w exchange.Responder) {
	s.asked.Add(1)
	if w.Queued(1) != nil {
		return
	}
	tick := time.NewTicker(exchange.ProgressInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			if w.Progress() != nil {
				return
			}
		case <-ctx.Done():
		}
	}
}

// Bitmaps implements exchange.Server.
func (s *staller) Bitmaps(ctx context.Context, _ exchange.Peer, _ content.CID, send func(*content.Bitmap) error) error {
	if s.bitmaps == nil {
		return content.ErrNotFound
	}
	return s.bitmaps(ctx, send)
}

// everything claims all chunks of any small image.
func everything(ctx context.Context, send func(*content.Bitmap) error) error {
	var all content.Bitmap
	for i := range uint64(imageSize / content.ChunkSizeDefault) {
		all.Add(i)
	}
	if err := send(&all); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// claims answers calls: whose farm it says it is.
type claims struct{ farm string }

// Call implements exchange.Answerer.
func (c claims) Call(_ context.Context, _ exchange.Peer, method string, _ []byte) ([]byte, error) {
	if method == "farm" {
		return []byte(c.farm), nil
	}
	return nil, fmt.Errorf("call %q: %w", method, content.ErrNotFound)
}

// The messages of the DHT, as far as attackers need them: protobuf by hand.
const (
	dhtAddProvider  = 2
	dhtGetProviders = 3
	dhtPing         = 5
	dhtConnected    = 1
)

func field(b []byte, number int, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|2)
	return append(binary.AppendUvarint(b, uint64(len(value))), value...)
}

func dhtPeer(info peer.AddrInfo) []byte {
	b := field(nil, 1, []byte(info.ID))
	for _, a := range info.Addrs {
		b = field(b, 2, a.Bytes())
	}
	return append(b, 3<<3, dhtConnected)
}

// dhtMessage is a message with its length before it.
func dhtMessage(kind byte, key []byte, closer, providers []peer.AddrInfo) []byte {
	b := field([]byte{1 << 3, kind}, 2, key)
	for _, p := range closer {
		b = field(b, 8, dhtPeer(p))
	}
	for _, p := range providers {
		b = field(b, 9, dhtPeer(p))
	}
	b = append(b, 10<<3, 1)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

// parseDHT reads the kind and the key of a message.
func parseDHT(b []byte) (kind byte, key []byte) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return kind, key
		}
		v, m := binary.Uvarint(b[n:])
		if m <= 0 {
			return kind, key
		}
		b = b[n+m:]
		switch {
		case tag&7 == 0 && tag>>3 == 1:
			kind = byte(v)
		case tag&7 == 2 && v > uint64(len(b)):
			return kind, key
		case tag&7 == 2 && tag>>3 == 2:
			key = b[:v]
		}
		if tag&7 == 2 {
			b = b[v:]
		}
	}
	return kind, key
}

// ring is hosts that each say of every key that all of them provide it.
type ring struct {
	mu      sync.Mutex // guards members
	members []peer.AddrInfo
	asked   atomic.Int64
}

func (r *ring) add(h *hostile) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members = append(r.members, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()})
}

func (r *ring) serve(s network.Stream) {
	defer s.Close()
	in := bufio.NewReader(s)
	for {
		n, err := binary.ReadUvarint(in)
		if err != nil || n > 1<<20 {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		kind, key := parseDHT(b)
		if kind == dhtAddProvider { // it takes no answer
			continue
		}
		if kind == dhtGetProviders {
			r.asked.Add(1)
		}
		r.mu.Lock()
		all := r.members
		r.mu.Unlock()
		if _, err := s.Write(dhtMessage(kind, key, all, all)); err != nil {
			return
		}
	}
}

// provide says in a node's DHT that this host provides keys, as fast as it can, and
// returns how many it has dealt with, or were sent before it hung up.
func (i insight) provide(ctx context.Context, h *hostile, to peer.ID, keys func(n int) []byte) (sent int, err error) {
	s, err := h.NewStream(ctx, to, protocol.ID(i.dhtProtocol()))
	if err != nil {
		return 0, err
	}
	defer s.Reset()
	context.AfterFunc(ctx, func() { s.Reset() })
	self := []peer.AddrInfo{{ID: h.ID(), Addrs: h.Addrs()}}
	out := bufio.NewWriterSize(s, 64<<10)
	for ; ; sent++ {
		key := keys(sent)
		if key == nil { // a question behind them all is answered last
			out.Write(dhtMessage(dhtPing, nil, nil, nil)) // an error stays until Flush
			if err := out.Flush(); err != nil {
				return sent, err
			}
			_, err = bufio.NewReader(s).ReadByte()
			return sent, err
		}
		if _, err := out.Write(dhtMessage(dhtAddProvider, key, nil, self)); err != nil {
			return sent, err
		}
	}
}

// gossipTransport is memberlist's on a host of the lab.
type gossipTransport struct {
	*memberlist.NetTransport
	at *netns.Host
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (g *gossipTransport) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return g.at.Dial(ctx, "tcp", a.Addr)
}

// DialTimeout implements memberlist.Transport.
func (g *gossipTransport) DialTimeout(addr string, d time.Duration) (net.Conn, error) {
	return g.DialAddressTimeout(memberlist.Address{Addr: addr}, d)
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
