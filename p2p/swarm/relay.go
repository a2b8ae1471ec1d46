package swarm

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	relay "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// relaysWanted is how many relays a member that can't be dialled is reached
	// through, and relayRetry how soon it asks again after one refused.
	relaysWanted = 2
	relayRetry   = time.Minute
	// relaySearch is how often it looks among its connections for a relay.
	relaySearch = 5 * time.Second
)

// reaching are the options by which members behind NATs are reached: ports that routers
// forward when asked, AutoNAT, own relays, and holes punched for QUIC. (TCP's need dials
// from the listening port.)
func (s *Swarm) reaching() []libp2p.Option {
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	carry := carrier{relay.NewMetricsTracer(relay.WithRegisterer(s.relaying)), &s.carried, s.cfg.Carried, ctx}
	out := []libp2p.Option{
		libp2p.EnableRelay(), libp2p.EnableHolePunching(), libp2p.EnableAutoNATv2(),
		libp2p.EnableRelayService(relay.WithResources(relayResources()), relay.WithACL(relayGate{s.proofs, s.cfg.Relays}), relay.WithMetricsTracer(carry),
			relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true })), // a mesh may have private addresses only
		libp2p.EnableAutoRelayWithPeerSource(s.relays, autorelay.WithMinCandidates(1), autorelay.WithNumRelays(relaysWanted),
			autorelay.WithBootDelay(0), autorelay.WithBackoff(relayRetry), autorelay.WithMinInterval(relaySearch)),
	}
	if s.cfg.asksRouter(s.listen) {
		out = append(out, libp2p.NATPortMap())
	}
	switch s.cfg.reach {
	case network.ReachabilityPrivate: // who can't be dialled can't try others
		return append(out, libp2p.ForceReachabilityPrivate())
	case network.ReachabilityPublic:
		out = append(out, libp2p.ForceReachabilityPublic())
	}
	return append(out, libp2p.EnableNATService())
}

// asksRouter reports whether a router is to be asked, by UPnP or NAT-PMP, to forward the
// ports: not of who says itself where it is reached, nor for what never leaves the host.
func (c Config) asksRouter(listen []ma.Multiaddr) bool {
	return c.reach == network.ReachabilityUnknown && slices.ContainsFunc(listen, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })
}

// HoldOutside says whether this member is one of those that hold a farm's paths from
// outside, as all do at first. Another one asks relays for a place only while it announces
// content, for then it is looked for.
func (s *Swarm) HoldOutside(holds bool) { s.inside.Store(!holds) }

// relays offers the members connected that say they relay.
func (s *Swarm) relays(ctx context.Context, limit int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo)
	go func() {
		defer close(out)
		select {
		case <-s.built:
		case <-ctx.Done():
			return
		}
		if s.inside.Load() && s.announced.count() == 0 {
			return
		}
		for _, p := range s.Peers() {
			if speaks, err := s.host.Peerstore().SupportsProtocols(p.ID, proto.ProtoIDv2Hop); err != nil || len(speaks) == 0 || limit == 0 {
				continue
			}
			limit--
			select {
			case out <- p:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// relayGate says for whom this member relays.
type relayGate struct {
	proofs *proofs
	open   func() bool
}

func (g relayGate) AllowReserve(id peer.ID, _ ma.Multiaddr) bool {
	ctx, cancel := context.WithTimeout(context.Background(), proveTimeout) // the relay gives no other
	defer cancel()
	return g.open() && g.proofs.wait(ctx, id)
}

func (g relayGate) AllowConnect(from peer.ID, a ma.Multiaddr, to peer.ID) bool {
	return g.AllowReserve(from, a) && g.proofs.proved(to) // who reserved a place has proved itself
}

// carrier counts what this member carries for others, and slows it down: the relay tells
// it of each piece before it reads the next, and waits meanwhile.
type carrier struct {
	relay.MetricsTracer
	bytes *atomic.Int64
	pay   func(context.Context, int)
	ctx   context.Context // ends with the host, whose relay gives no other
}

func (c carrier) BytesTransferred(n int) {
	c.bytes.Add(int64(n))
	c.MetricsTracer.BytesTransferred(n)
	if c.pay != nil {
		ctx, cancel := context.WithTimeout(c.ctx, circuitDuration) // then the circuit has ended
		defer cancel()
		c.pay(ctx, n)
	}
}

// relayedHost is the host that the exchange sees: relays, being ours, carry content, which
// is counted.
type relayedHost struct {
	host.Host
	relayed *atomic.Int64
}

func (h relayedHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	s, err := h.Host.NewStream(network.WithAllowLimitedConn(ctx, "content"), id, protocols...)
	if err != nil {
		return nil, err
	}
	return h.meter(s), nil
}

func (h relayedHost) SetStreamHandler(id protocol.ID, serve network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) { serve(h.meter(s)) })
}

func (h relayedHost) meter(s network.Stream) network.Stream {
	if !s.Conn().Stat().Limited {
		return s
	}
	return metered{s, h.relayed}
}

// metered is a stream through a relay.
type metered struct {
	network.Stream
	bytes *atomic.Int64
}

func (s metered) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	s.bytes.Add(int64(n))
	return n, err
}

func (s metered) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	s.bytes.Add(int64(n))
	return n, err
}

// Relayed is how many bytes of content went through relays: own of this member, and others'
// that it carried, since the start.
func (s *Swarm) Relayed() (own, carried int64) { return s.relayed.Load(), s.carried.Load() }

// Way is by what a member is connected with another, the best of several.
type Way string

// The ways, the best first. "" is that of who is not connected.
const (
	LAN     Way = "LAN"     // at an address of a subnet that both are in
	Direct  Way = "direct"  // from address to address, through a hole in a NAT maybe
	Through Way = "relayed" // through a third member, which carries what they say
)

// Path is the way to another member, and the address at its other end: the relay's, for one
// that leads through it.
type Path struct {
	Way     Way
	Address string
}

// Path says how this member is connected with another; the zero Path when it is not.
func (s *Swarm) Path(id peer.ID) (best Path) {
	rank := []Way{LAN, Direct, Through, ""}
	for _, c := range s.host.Network().ConnsToPeer(id) {
		at := c.RemoteMultiaddr()
		p := Path{Direct, at.String()}
		switch {
		case c.Stat().Limited:
			p.Way = Through
		case s.places.near(at):
			p.Way = LAN
		}
		if slices.Index(rank, p.Way) < slices.Index(rank, best.Way) {
			best = p
		}
	}
	return best
}

// punchWait is how long a hole may take: it is tried three times.
const punchWait = 10 * time.Second

// Reach connects with a member, whose addresses are given, known, or asked the DHT for, and
// returns the way: where that is a relay, once holes had the time to be punched.
func (s *Swarm) Reach(ctx context.Context, info peer.AddrInfo) (Path, error) {
	if s.Path(info.ID).Way == "" {
		info.Addrs = append(slices.Clip(info.Addrs), s.host.Peerstore().Addrs(info.ID)...)
		if len(info.Addrs) == 0 {
			found, err := s.dht.FindPeer(ctx, info.ID)
			if err != nil {
				return Path{}, fmt.Errorf("find %s: %w: neither this member nor those that it can ask know an address of it: %w", info.ID, content.ErrUnavailable, err)
			}
			info = found
		}
		if err := s.connectNow(ctx, info); err != nil {
			return Path{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, punchWait)
	defer cancel()
	tick := time.Tick(placesCheck / 20)
	for s.Path(info.ID).Way == Through {
		select {
		case <-tick:
		case <-ctx.Done():
			return s.Path(info.ID), nil
		}
	}
	return s.Path(info.ID), nil
}
