package swarm

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	relay "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// windowInitial lets a new stream send some runs at once, where the library's 256 KiB
	// would take several round trips; windowMax fills a link of 4 Gbit/s at 60 ms.
	windowInitial = 4 << 20
	windowMax     = 32 << 20

	// frameMax takes a chunk with its head in one frame of the muxer, so in one write of
	// the socket and one wake-up at either end; the library would make three. It delays
	// others no more: what is under way is bounded elsewhere.
	frameMax = 256 << 10

	connsMax     = 4096 // of this member; a mesh of a thousand nodes meshes nearly fully
	connsPerPeer = 16
	streamsMax   = 16384 // four for each connection; who asks has three, and the DHT one now and then
	streamsPeer  = 256
	// streamsNew bounds the streams that have not said yet what they are for.
	streamsNew = 2048
	// siteBits are the prefixes, of IPv4 and IPv6, that count as one site's address.
	siteBits4, siteBits6 = 32, 56
	// Memory is what windows promise, not what is allocated: the muxer books
	// 256 KiB for each stream and what its window grows by. The library would let
	// a member have 16 MiB a stream and far fewer streams than streamsMax.
	memoryMax    = streamsMax * 256 << 10 // 4 GiB
	memoryPeer   = 512 << 20
	memoryConn   = 256 << 20
	memoryStream = 2 * windowMax

	connsLow   = 1024 // above connsHigh, the least useful are closed down to connsLow
	connsHigh  = 2048
	connsGrace = time.Minute

	connsPerSite = 1024 // a farm behind one address; the library would take 8
	dialsPerSite = 100  // new connections a second of one address; the library would take one in 5 s
	dialsBurst   = 1024

	// A circuit carries content until a direct connection is found, and ends so that the
	// two look for one again. The library's 128 KiB would not carry one chunk.
	circuitBytes    = 1 << 30 // each way
	circuitDuration = 15 * time.Minute
	circuitBuffer   = 64 << 10
	circuitsPerPeer = 64
	relayedMax      = 1024 // members that a relay makes reachable
	relayedPerSite  = 256  // of them behind one address, as a farm is
)

// newResourceManager replaces the library's limits, which are for one peer an address,
// and are set by name since those stay even where all others are lifted.
func newResourceManager() (network.ResourceManager, error) {
	of := func(streams, conns rcmgr.LimitVal, memory rcmgr.LimitVal64) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{
			Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns, Memory: memory,
		}
	}
	all, one, conn := of(streamsMax, connsMax, memoryMax), of(streamsPeer, connsPerPeer, memoryPeer), of(streamsPeer, 1, memoryConn)
	fresh := all
	fresh.Streams, fresh.StreamsInbound, fresh.StreamsOutbound = streamsNew, streamsNew, streamsNew
	stream := rcmgr.ResourceLimits{Streams: 1, StreamsInbound: 1, StreamsOutbound: 1, Memory: memoryStream}
	limits := rcmgr.PartialLimitConfig{
		System: all, Transient: fresh, AllowlistedSystem: all, AllowlistedTransient: fresh,
		ServiceDefault: all, ServicePeerDefault: one, ProtocolDefault: all, ProtocolPeerDefault: one,
		PeerDefault: one, Conn: conn, Stream: stream,
	}.Build(rcmgr.InfiniteLimits)
	sites := func(bits int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: bits, ConnCount: connsPerSite}}
	}
	dials := func(bits int) []rate.SubnetLimit {
		return []rate.SubnetLimit{{PrefixLength: bits, Limit: rate.Limit{RPS: dialsPerSite, Burst: dialsBurst}}}
	}
	loopback := rcmgr.NetworkPrefixLimit{Network: netip.MustParsePrefix("127.0.0.0/8"), ConnCount: math.MaxInt}
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithLimitPerSubnet(sites(siteBits4), sites(siteBits6)), rcmgr.WithNetworkPrefixLimit([]rcmgr.NetworkPrefixLimit{loopback}, nil),
		rcmgr.WithConnRateLimiters(&rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{IPv4SubnetLimits: dials(siteBits4), IPv6SubnetLimits: dials(siteBits6), GracePeriod: time.Minute}}),
		rcmgr.WithMetricsDisabled())
	if err != nil {
		return nil, fmt.Errorf("resource limits: %w", err)
	}
	return m, nil
}

func muxer() libp2p.Option {
	c := *yamux.DefaultTransport.Config()
	c.InitialStreamWindowSize = windowInitial
	c.MaxStreamWindowSize = windowMax
	c.MaxMessageSize = frameMax
	t := yamux.Transport(c)
	return libp2p.Muxer(yamux.ID, &t)
}

func relayResources() relay.Resources {
	r := relay.DefaultResources()
	r.Limit = &relay.RelayLimit{Duration: circuitDuration, Data: circuitBytes}
	r.MaxReservations, r.MaxReservationsPerIP, r.MaxReservationsPerASN = relayedMax, relayedPerSite, relayedMax
	r.MaxCircuits, r.BufferSize = circuitsPerPeer, circuitBuffer
	return r
}

// Collectors returns the metrics of this swarm.
func (s *Swarm) Collectors() []prometheus.Collector {
	all := prometheus.NewRegistry()
	to := promauto.With(all)
	gauge := func(name, help string, labels prometheus.Labels, get func() int) {
		to.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "grange", Subsystem: "swarm", Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(get()) })
	}
	gauge("table_members", "Members in the routing table of the DHT.", nil, func() int { return s.dht.RoutingTable().Size() })
	gauge("announced_roots", "Roots that this member announces.", nil, s.announced.count)
	gauge("banned_members", "Members that are banned.", nil, func() int { return len(s.ledger.Bans()) })
	gauge("guests", "Connections with peers that have not proved that they are members.", nil, func() int { return int(s.guests.Load()) })
	counter := func(name, help string, get func() int64) {
		to.NewCounterFunc(prometheus.CounterOpts{Namespace: "grange", Subsystem: "swarm", Name: name, Help: help}, func() float64 { return float64(get()) })
	}
	counter("relayed_bytes_total", "Bytes of content, sent and received through relays.", s.relayed.Load)
	counter("carried_bytes_total", "Bytes that were carried for others, as their relay.", s.carried.Load)
	counter("revoked_callers_total", "Times that somebody has connected with a revoked key, and was refused.", s.revoked.Load)
	gauge("silent_bootstraps", "Bootstrap members that do not answer.", nil, func() int { return int(s.silent.Load()) })
	for _, via := range []transport{viaTCP, viaQUIC, viaRelay} {
		gauge("connections", "Open connections, by transport.", prometheus.Labels{"transport": via.String()},
			func() int { return countConns(s.host.Network().Conns(), via) })
	}
	return []prometheus.Collector{all, s.relaying}
}

// transport is what carries a connection, in the order in which it is preferred.
type transport int

const (
	viaTCP transport = iota
	viaQUIC
	viaRelay
)

func (t transport) String() string { return [...]string{"tcp", "quic", "relay"}[t] }

func transportOf(a ma.Multiaddr) transport {
	via := viaQUIC
	ma.ForEach(a, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_TCP:
			via = viaTCP
		case ma.P_CIRCUIT: // comes after the transport that reaches the relay
			via = viaRelay
		}
		return true
	})
	return via
}

func countConns(conns []network.Conn, via transport) (n int) {
	for _, c := range conns {
		if transportOf(c.RemoteMultiaddr()) == via {
			n++
		}
	}
	return n
}
