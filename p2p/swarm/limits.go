package swarm

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	connmanager "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// windowInitial lets a new stream send a run at once, where the library's
	// 256 KiB would take it several round trips; windowMax fills a link of
	// 4 Gbit/s at 60 ms.
	windowInitial = 4 << 20
	windowMax     = 32 << 20

	connsMax     = 4096 // of this member; a mesh of a thousand nodes meshes nearly fully
	connsPerPeer = 16
	streamsMax   = 65536
	streamsPeer  = 1024
	memoryMax    = 1 << 30
	memoryPeer   = 512 << 20
	memoryConn   = 256 << 20
	memoryStream = 64 << 20
	connsLow     = 1024 // above connsHigh, the least useful are closed down to connsLow
	connsHigh    = 2048
	connsGrace   = time.Minute
	connsPerSite = 1024 // a farm behind one address; the library would take 8
	dialsPerSite = 100  // new connections a second of one address
	dialsBurst   = 1024
)

// newResourceManager replaces the library's limits, which are made for one peer
// an address.
func newResourceManager() (network.ResourceManager, error) {
	all := rcmgr.ResourceLimits{
		Streams: streamsMax, StreamsInbound: streamsMax, StreamsOutbound: streamsMax,
		Conns: connsMax, ConnsInbound: connsMax, ConnsOutbound: connsMax, FD: connsMax, Memory: memoryMax,
	}
	one := rcmgr.ResourceLimits{
		Streams: streamsPeer, StreamsInbound: streamsPeer, StreamsOutbound: streamsPeer,
		Conns: connsPerPeer, ConnsInbound: connsPerPeer, ConnsOutbound: connsPerPeer, FD: connsPerPeer, Memory: memoryPeer,
	}
	conn := rcmgr.ResourceLimits{
		Streams: streamsPeer, StreamsInbound: streamsPeer, StreamsOutbound: streamsPeer, Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: memoryConn,
	}
	stream := rcmgr.ResourceLimits{Streams: 1, StreamsInbound: 1, StreamsOutbound: 1, Memory: memoryStream}
	limits := rcmgr.PartialLimitConfig{
		System: all, Transient: all, AllowlistedSystem: all, AllowlistedTransient: all,
		ServiceDefault: all, ServicePeerDefault: one, ProtocolDefault: all, ProtocolPeerDefault: one,
		PeerDefault: one, Conn: conn, Stream: stream,
	}.Build(rcmgr.InfiniteLimits)
	sites := func(bits int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: bits, ConnCount: connsPerSite}}
	}
	dials := func(bits int) []rate.SubnetLimit {
		return []rate.SubnetLimit{{PrefixLength: bits, Limit: rate.Limit{RPS: dialsPerSite, Burst: dialsBurst}}}
	}
	any := rcmgr.NetworkPrefixLimit{Network: netip.MustParsePrefix("127.0.0.0/8"), ConnCount: math.MaxInt}
	m, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithLimitPerSubnet(sites(32), sites(56)), rcmgr.WithNetworkPrefixLimit([]rcmgr.NetworkPrefixLimit{any}, nil),
		rcmgr.WithConnRateLimiters(&rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{IPv4SubnetLimits: dials(32), IPv6SubnetLimits: dials(56), GracePeriod: time.Minute}}),
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
	t := yamux.Transport(c)
	return libp2p.Muxer(yamux.ID, &t)
}

func newConnectionManager() connmgr.ConnManager {
	m, err := connmanager.NewConnManager(connsLow, connsHigh, connmanager.WithGracePeriod(connsGrace))
	if err != nil { // the watermarks are constants that make sense
		panic(fmt.Sprintf("swarm: connection manager: %v", err))
	}
	return m
}

// bans refuses connections with members that lied, for a while each.
type bans struct {
	now   func() time.Time
	mu    sync.Mutex // guards until
	until map[peer.ID]time.Time
}

// bansMax bounds the list; beyond it the oldest bans are forgotten at random.
const bansMax = 10_000

func newBans(now func() time.Time) *bans { return &bans{now: now, until: map[peer.ID]time.Time{}} }

func (b *bans) add(id peer.ID, d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for other := range b.until {
		if len(b.until) < bansMax {
			break
		}
		delete(b.until, other)
	}
	b.until[id] = b.now().Add(d)
}

func (b *bans) has(id peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.until[id]
	if ok && b.now().After(until) {
		delete(b.until, id)
		return false
	}
	return ok
}

// The gates that libp2p asks at; only those that know the peer refuse.

func (b *bans) InterceptPeerDial(id peer.ID) bool            { return !b.has(id) }
func (b *bans) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }
func (b *bans) InterceptAccept(network.ConnMultiaddrs) bool  { return true }
func (b *bans) InterceptSecured(_ network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	return !b.has(id)
}
func (b *bans) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
