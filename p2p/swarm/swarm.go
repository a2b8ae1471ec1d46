// Package swarm connects members across farms: a libp2p host with limits and
// windows for bulk transfer, and a DHT of the mesh's own in which members
// announce the roots that they hold.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	mh "github.com/multiformats/go-multihash"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// announceValidity is how long an announcement is believed, and reannounce how
	// often it is made again: one lost round does no harm.
	announceValidity = 30 * time.Minute
	reannounce       = 10 * time.Minute
	// announceTimeout bounds one announcement.
	announceTimeout = 30 * time.Second
	// announcersMax is how many members one search yields.
	announcersMax = 20
	// announcementsMax bounds the roots that a member announces.
	announcementsMax = 10_000
	// bootstrapInterval is how often a member without connections tries its
	// bootstrap addresses.
	bootstrapInterval = 3 * time.Second
	dialTimeout       = 10 * time.Second
)

// Config is what a Swarm is built from.
type Config struct {
	// Identity is this member's key, which decides its peer ID.
	Identity trust.PrivateKey
	// Mesh names the DHT: members of other meshes are not seen.
	Mesh trust.PublicKey
	// Listen are multiaddrs; none listens on nothing, as a joining node does.
	Listen []string
	// Bootstrap are full multiaddrs of members to begin with.
	Bootstrap []string
	// Log may be nil.
	Log *slog.Logger
}

// Swarm is this member's place in the mesh. Use: New, Listen, Run.
type Swarm struct {
	cfg       Config
	listen    []ma.Multiaddr
	bootstrap []peer.AddrInfo
	host      host.Host
	dht       *dht.IpfsDHT
	bans      *bans

	mu        sync.Mutex // guards announced
	announced map[Key]bool
	wake      chan Key // keys to be announced at once
}

// New builds the host; it neither listens nor dials before Listen and Run.
func New(cfg Config) (*Swarm, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Swarm{cfg: cfg, bans: newBans(time.Now), announced: map[Key]bool{}, wake: make(chan Key, 64)}
	for _, text := range cfg.Listen {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return nil, fmt.Errorf("--listen %q: %w: %w; write it as /ip4/10.0.0.5/tcp/4001", text, content.ErrInvalid, err)
		}
		s.listen = append(s.listen, a)
	}
	for _, text := range cfg.Bootstrap {
		info, err := ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("--bootstrap: %w", err)
		}
		s.bootstrap = append(s.bootstrap, info)
	}
	if err := s.build(); err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	return s, nil
}

// ParseAddr reads a full multiaddr, with the peer ID at its end.
func ParseAddr(text string) (peer.AddrInfo, error) {
	info, err := peer.AddrInfoFromString(text)
	if err != nil {
		return peer.AddrInfo{}, fmt.Errorf("address %.200q: %w: %w; want one that ends in /p2p/ID", text, content.ErrInvalid, err)
	}
	return *info, nil
}

func (s *Swarm) build() error {
	key, err := libp2pKey(s.cfg.Identity)
	if err != nil {
		return err
	}
	limits, err := newResourceManager()
	if err != nil {
		return err
	}
	s.host, err = libp2p.New(
		libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.UserAgent("grange"),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), // with it, an address in use would be taken silently
		libp2p.Transport(quic.NewTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New), muxer(),
		libp2p.ResourceManager(limits), libp2p.ConnectionGater(s.bans),
		libp2p.ConnectionManager(newConnectionManager()), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(), // farms stand on addresses that we are told
	)
	if err != nil {
		return errors.Join(err, limits.Close())
	}
	prefix := protocol.ID("/grange/" + s.cfg.Mesh.String())
	s.dht, err = dht.New(s.host, dht.Mode(dht.ModeServer), dht.ProtocolPrefix(prefix), dht.DisableValues(),
		dht.ProviderManagerOpts(records.ProvideValidity(announceValidity)), dht.BootstrapPeers(s.bootstrap...),
		// members of one site share a subnet, so no filter by address
		dht.RoutingTablePeerDiversityFilter(nil))
	if err != nil {
		return errors.Join(err, s.host.Close())
	}
	return nil
}

// Host carries the streams of the exchange.
func (s *Swarm) Host() host.Host { return s.host }

// ID returns this member's peer ID.
func (s *Swarm) ID() peer.ID { return s.host.ID() }

// Listen opens the addresses, so that one in use is found before anything else
// starts.
func (s *Swarm) Listen() error {
	if len(s.listen) == 0 {
		return nil
	}
	if err := s.host.Network().Listen(s.listen...); err != nil {
		return fmt.Errorf("--listen %v: %w", s.cfg.Listen, err)
	}
	if got := len(s.host.Network().ListenAddresses()); got < len(s.listen) {
		return fmt.Errorf("--listen %v: %w: only %d of %d addresses could be opened; is one in use?", s.cfg.Listen, content.ErrUnavailable, got, len(s.listen))
	}
	return nil
}

// Addrs returns the full multiaddrs that others reach this member at.
func (s *Swarm) Addrs() []string {
	addrs, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: s.host.ID(), Addrs: s.host.Addrs()})
	if err != nil {
		return nil
	}
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// Run keeps this member in the mesh until ctx ends, then closes the host.
func (s *Swarm) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.keepConnected(ctx) })
	wg.Go(func() { s.keepAnnounced(ctx) })
	<-ctx.Done()
	wg.Wait()
	return s.Close()
}

// Close closes a swarm that is not run.
func (s *Swarm) Close() error { return errors.Join(s.dht.Close(), s.host.Close()) }

// keepConnected dials the bootstrap addresses while there is no connection.
func (s *Swarm) keepConnected(ctx context.Context) {
	tick := time.NewTicker(bootstrapInterval)
	defer tick.Stop()
	said := false
	for {
		if len(s.bootstrap) > 0 && len(s.host.Network().Peers()) == 0 {
			err := s.dialAny(ctx)
			if err != nil && ctx.Err() == nil && !said {
				s.cfg.Log.Warn("no bootstrap address answers yet", "err", err)
			}
			said = err != nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// dialAny connects to every bootstrap address; one success is success.
func (s *Swarm) dialAny(ctx context.Context) error {
	errs := make(chan error, len(s.bootstrap))
	for _, info := range s.bootstrap {
		go func() { errs <- s.Connect(ctx, info) }()
	}
	var all []error
	for range s.bootstrap {
		if err := <-errs; err != nil {
			all = append(all, err)
		}
	}
	if len(all) == len(s.bootstrap) {
		return errors.Join(all...)
	}
	<-s.dht.RefreshRoutingTable()
	return nil
}

// Connect dials a member.
func (s *Swarm) Connect(ctx context.Context, info peer.AddrInfo) error {
	if info.ID == s.host.ID() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return s.host.Connect(ctx, info)
}

// Learn remembers where a member can be reached, as the farm's gossip says, for
// as long as this process runs.
func (s *Swarm) Learn(info peer.AddrInfo) {
	s.host.Peerstore().AddAddrs(info.ID, info.Addrs, announceValidity)
}

// Peers returns the members that this one is connected with.
func (s *Swarm) Peers() []peer.AddrInfo {
	var out []peer.AddrInfo
	for _, id := range s.host.Network().Peers() {
		if s.host.Network().Connectedness(id) == network.Connected {
			out = append(out, s.host.Peerstore().PeerInfo(id))
		}
	}
	return out
}

// Announce tells the mesh that this member holds content of the key, until
// Withdraw. It returns at once.
func (s *Swarm) Announce(k Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.announced[k] {
		return nil
	}
	if len(s.announced) >= announcementsMax {
		return fmt.Errorf("announce: %w: %d roots are announced already", content.ErrNoSpace, len(s.announced))
	}
	s.announced[k] = true
	select {
	case s.wake <- k:
	default: // the next round announces it
	}
	return nil
}

// Withdraw announces the key no more. A DHT forgets within announceValidity;
// who comes meanwhile is told that nothing is here.
func (s *Swarm) Withdraw(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.announced, k)
}

func (s *Swarm) keepAnnounced(ctx context.Context) {
	tick := time.NewTicker(reannounce)
	defer tick.Stop()
	for {
		var due []Key
		select {
		case k := <-s.wake:
			due = []Key{k}
		case <-tick.C:
			s.mu.Lock()
			for k := range s.announced {
				due = append(due, k)
			}
			s.mu.Unlock()
		case <-ctx.Done():
			return
		}
		for _, k := range due {
			ctx, cancel := context.WithTimeout(ctx, announceTimeout)
			if err := s.dht.Provide(ctx, k.cid(), true); err != nil && ctx.Err() == nil {
				s.cfg.Log.Debug("announcement failed", "err", err) // alone in the mesh
			}
			cancel()
		}
	}
}

// Find yields members that announced the key, the earliest found first, at most
// announcersMax, until the search or ctx ends.
func (s *Swarm) Find(ctx context.Context, k Key) iter.Seq[peer.AddrInfo] {
	return func(yield func(peer.AddrInfo) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for info := range s.dht.FindProvidersAsync(ctx, k.cid(), announcersMax) {
			if info.ID == s.host.ID() {
				continue
			}
			if len(info.Addrs) > 0 {
				s.host.Peerstore().AddAddrs(info.ID, info.Addrs, announceValidity)
			}
			if !yield(info) {
				return
			}
		}
	}
}

// Ban closes the connections with a member and refuses new ones for a while.
func (s *Swarm) Ban(id peer.ID, d time.Duration) {
	s.bans.add(id, d)
	s.host.Network().ClosePeer(id)
}

// Banned reports whether a member is banned now.
func (s *Swarm) Banned(id peer.ID) bool { return s.bans.has(id) }

func (k Key) cid() cid.Cid {
	digest, err := mh.Encode(k[:], mh.SHA2_256)
	if err != nil { // 32 bytes of a known hash can always be encoded
		panic(fmt.Sprintf("swarm: encode key: %v", err))
	}
	return cid.NewCidV1(cid.Raw, digest)
}
