// Package swarm connects members across farms: a libp2p host for bulk transfer, and a
// DHT of the mesh's own in which members announce the roots that they hold.
package swarm

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	libp2pswarm "github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// Config is what a Swarm is built from.
type Config struct {
	// Identity is this member's key, which decides its peer ID.
	Identity trust.PrivateKey
	// Mesh names the DHT: members of other meshes are not seen.
	Mesh trust.PublicKey
	// Listen are multiaddrs; none listens on nothing, as a joining node does.
	Listen []string
	// Announce are multiaddrs at which others reach this member from outside, as
	// through a port forward; they are told beside those of its networks.
	Announce []string
	// Bootstrap are full multiaddrs of members to begin with.
	Bootstrap []string
	// PeersFile keeps members' addresses for a restart, in a folder that exists; "" none.
	PeersFile string
	// Ledger says who has proved that it is a member, and who is shut out. Prove waits
	// until a peer has proved itself, opening what is needed, and reports whether it could.
	// What others announce, ask or would have relayed is ignored, and their connections go
	// first. A nil Ledger takes all for members, as who has no certificate yet does.
	Ledger *identity.Ledger
	Prove  func(context.Context, peer.ID) bool
	// Carried is called after so many bytes were carried for others, and holds them up
	// until it returns; nil is not called. Relays says whether new circuits are let in; nil
	// lets all in.
	Carried func(context.Context, int)
	Relays  func() bool
	// Log may be nil.
	Log *slog.Logger

	// reach is whether others can dial this member; who Announces says so, of the others
	// AutoNAT finds it out. Public ones serve the DHT, and relay for others. Private ones
	// are reached through relays until a hole has been punched, and only ask the DHT. Where
	// nobody can tell, behind private addresses, a member serves the DHT and relays not.
	reach network.Reachability
}

func (c Config) withDefaults() Config {
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Relays == nil {
		c.Relays = func() bool { return true }
	}
	if len(c.Announce) > 0 {
		c.reach = network.ReachabilityPublic // as its operator says
	}
	return c
}

// Swarm is this member's place in the mesh. Use: New, Listen, Run.
type Swarm struct {
	cfg       Config
	listen    []ma.Multiaddr
	outside   []ma.Multiaddr // Config.Announce
	bootstrap []peer.AddrInfo
	kept      []peer.AddrInfo // of before the restart
	places    places
	relaying  *prometheus.Registry // the relay's metrics
	carried   atomic.Int64         // bytes for others
	relayed   atomic.Int64         // bytes of this member's own, through relays
	inside    atomic.Bool          // others hold the farm's paths from outside
	stop      context.CancelFunc
	moved     chan struct{}
	host      host.Host
	dht       *dht.IpfsDHT
	ledger    *identity.Ledger
	proofs    *proofs
	proved    chan peer.ID // those that have just proved that they are members
	guests    atomic.Int64 // connections with others
	announced announcements
	wake      chan struct{} // something is to be announced at once
	revoked   atomic.Int64  // times that one with a revoked key has come
	silent    atomic.Int64  // bootstrap members that do not answer
	built     chan struct{} // closed when the fields above are set
}

// New builds the host; it neither listens nor dials before Listen and Run.
func New(cfg Config) (*Swarm, error) {
	cfg = cfg.withDefaults()
	s := &Swarm{
		cfg: cfg, ledger: cfg.Ledger, announced: announcements{keys: map[Key]*announcement{}}, proved: make(chan peer.ID, connsMax),
		wake: make(chan struct{}, 1), moved: make(chan struct{}, 1), relaying: prometheus.NewRegistry(), built: make(chan struct{}),
	}
	s.proofs = newProofs(func(id peer.ID) bool { _, ok := s.ledger.Of(id); return ok || cfg.Ledger == nil }, cfg.Prove)
	if s.ledger == nil {
		s.ledger = identity.New(trust.NewVerifier(cfg.Mesh), time.Now)
	}
	var err error
	if s.listen, s.outside, err = CheckAddrs(cfg.Listen, cfg.Announce); err != nil {
		return nil, err
	}
	for _, text := range cfg.Bootstrap {
		info, err := ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("--bootstrap: %w", err)
		}
		s.bootstrap = AddPeer(s.bootstrap, info)
	}
	if s.kept, err = loadPeers(cfg.PeersFile); err != nil {
		cfg.Log.Warn("the addresses of peers from before the restart can't be read; going on without", "err", err)
	}
	if err := s.build(); err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	close(s.built)
	return s, nil
}

func (s *Swarm) build() error {
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(s.cfg.Identity.Seed()))
	if err != nil {
		return err
	}
	conns, err := connmgr.NewConnManager(connsLow, connsHigh, connmgr.WithGracePeriod(connsGrace))
	if err != nil {
		return err
	}
	limits, err := newResourceManager()
	if err != nil {
		return errors.Join(err, conns.Close())
	}
	options := []libp2p.Option{
		libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.UserAgent("grange"), libp2p.AddrsFactory(s.advertised),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), // with it, an address in use would be taken silently
		libp2p.Transport(quic.NewTransport),
		libp2p.Security(libp2ptls.ID, newTLS), muxer(), libp2p.SwarmOpts(libp2pswarm.WithDialRanker(s.rankDials)),
		libp2p.ResourceManager(limits), libp2p.ConnectionGater(doorkeeper{s.ledger, &s.revoked}), libp2p.ConnectionManager(conns), libp2p.DisableMetrics(),
		libp2p.Ping(false), // nobody needs it, and it would keep strangers' streams open
	}
	s.host, err = libp2p.New(append(options, s.reaching()...)...)
	if err != nil {
		return errors.Join(err, limits.Close(), conns.Close())
	}
	mode := dht.ModeAutoServer
	if len(s.listen) == 0 {
		mode = dht.ModeClient
	}
	s.dht, err = dht.New(gatedHost{s.host, s.proofs}, dht.Mode(mode), dht.DisableValues(),
		dht.ProtocolPrefix(protocol.ID("/grange/"+s.cfg.Mesh.String())),
		dht.ProviderDatastore(newProviders(announcementsMax, providersMax)), dht.AddressFilter(someAddrs),
		dht.ProviderManagerOpts(records.ProvideValidity(announceValidity), records.ProviderAddrTTL(announceValidity), records.CleanupInterval(reannounce)),
		dht.RoutingTableFilter(func(_ any, id peer.ID) bool { return s.proofs.proved(id) }),
		// members of one site share a subnet, so no filter by address
		dht.RoutingTablePeerDiversityFilter(nil))
	if err != nil {
		return errors.Join(err, s.host.Close())
	}
	return nil
}

// Host carries the streams of the exchange.
func (s *Swarm) Host() host.Host { return relayedHost{s.host, &s.relayed} }

// ID returns this member's peer ID.
func (s *Swarm) ID() peer.ID { return s.host.ID() }

// Listen opens the addresses, before all else. Of those that stand for all of a family
// that this host hasn't got some may fail, but not all. Its failure is
// content.ErrUnavailable.
func (s *Swarm) Listen() error {
	opened := 0
	for i, a := range s.listen {
		err := s.host.Network().Listen(a)
		if err == nil {
			opened++
			continue
		}
		err = fmt.Errorf("--listen %s: %w: %w; give a port that is free, at an address of this host", a, content.ErrUnavailable, err)
		known := !strings.Contains(err.Error(), "address family not supported") && !strings.Contains(err.Error(), "cannot assign requested address")
		if known || !manet.IsIPUnspecified(a) || opened == 0 && i == len(s.listen)-1 {
			return err
		}
		s.cfg.Log.Info("this host knows no such addresses; none is listened on", "listen", a.String())
	}
	return nil
}

// Info says where others reach this member, Announce last.
func (s *Swarm) Info() peer.AddrInfo {
	all := s.host.Addrs()
	slices.SortStableFunc(all, func(a, b ma.Multiaddr) int {
		return cmp.Compare(slices.IndexFunc(s.outside, a.Equal), slices.IndexFunc(s.outside, b.Equal))
	})
	return peer.AddrInfo{ID: s.host.ID(), Addrs: all}
}

// Addrs returns Info as text.
func (s *Swarm) Addrs() []string { return Texts(s.Info()) }

// Run keeps this member in the mesh until ctx ends, then closes the host.
func (s *Swarm) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.keepConnected(ctx) })
	wg.Go(func() { s.keepAnnounced(ctx) })
	wg.Go(func() {
		if err := s.keepPlaces(ctx); err != nil {
			s.cfg.Log.Error("addresses that come and go are not followed, until a restart", "err", err)
		}
	})
	var guests error
	wg.Go(func() {
		if guests = s.keepGuests(ctx); guests != nil {
			s.cfg.Log.Error("strangers' connections are not looked after any more, until a restart", "err", guests)
		}
	})
	err := s.keepPeers(ctx)
	<-ctx.Done()
	wg.Wait()
	return errors.Join(err, guests, s.Close())
}

// Close closes a swarm that is not run.
func (s *Swarm) Close() error {
	s.stop()
	return errors.Join(s.dht.Close(), s.host.Close())
}

// Learn remembers where a member of this farm can be reached, as its gossip says, until
// Forget; connections with it are kept before others.
func (s *Swarm) Learn(info peer.AddrInfo) {
	s.host.Peerstore().UpdateAddrs(info.ID, peerstore.PermanentAddrTTL, peerstore.RecentlyConnectedAddrTTL) // it may have moved
	s.host.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.PermanentAddrTTL)
	s.host.ConnManager().Protect(info.ID, "farm")
}

// Forget ends what Learn began, for a member that is gone from the farm.
func (s *Swarm) Forget(id peer.ID) {
	s.host.Peerstore().UpdateAddrs(id, peerstore.PermanentAddrTTL, peerstore.RecentlyConnectedAddrTTL)
	s.host.ConnManager().Unprotect(id, "farm")
}

// Peers returns the members that this one is connected with, by their proofs.
func (s *Swarm) Peers() []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, id := range s.host.Network().Peers() {
		if s.connected(id) && s.proofs.proved(id) {
			out = append(out, s.host.Peerstore().PeerInfo(id))
		}
	}
	return out
}

// Ban closes the connections with a member and refuses new ones for a while, for a reason
// that people read.
func (s *Swarm) Ban(id peer.ID, d time.Duration, why string) {
	s.ledger.Ban(id, d, why)
	s.Dismiss(id)
}
