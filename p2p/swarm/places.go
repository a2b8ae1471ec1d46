package swarm

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/p2p/lan"
)

const (
	// placesCheck is how often a member looks at the addresses of its host.
	placesCheck = 2 * time.Second
	// placesBuffer takes what is heard between two looks: a mesh that greets at once.
	placesBuffer = 1024
	// orphansFor is how long those are dialled whose connections went with an address, and
	// orphansMax how many.
	orphansFor = 10 * time.Minute
	orphansMax = 256
)

// places are the addresses of this host, as they were at the last look.
type places struct {
	own atomic.Pointer[[]lan.Address]

	mu     sync.Mutex // guards what follows
	held   []netip.Addr
	looked time.Time
}

// look sees to it that own is not older than a second, and returns all that are held.
func (p *places) look(now time.Time) ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.looked) < time.Second {
		return p.held, nil
	}
	held, err := lan.Held()
	if err != nil {
		return p.held, err
	}
	if !slices.Equal(held, p.held) || p.own.Load() == nil { // a look at each interface costs more
		own, err := lan.Addresses()
		if err != nil {
			return p.held, err
		}
		p.own.Store(&own)
	}
	p.held, p.looked = held, now
	return held, nil
}

// near reports whether an address is in a subnet of this host.
func (p *places) near(a ma.Multiaddr) bool {
	ip, ok := ipOf(a)
	own := p.own.Load()
	return ok && (ip.IsLoopback() || own != nil && lan.Beside(*own, ip))
}

// hides reports whether this host has no address of the world's in a family of addresses.
func (p *places) hides(family netip.Addr) bool {
	own := p.own.Load()
	return own == nil || !slices.ContainsFunc(*own, func(a lan.Address) bool {
		at, err := manet.FromIP(a.Addr().AsSlice())
		return !a.Inner && a.Addr().Is4() == family.Is4() && err == nil && manet.IsPublicAddr(at)
	})
}

// keepPlaces follows the addresses of this host, and those of peers, as they come and go,
// until ctx ends: connections that lead nowhere any more are closed, others made.
func (s *Swarm) keepPlaces(ctx context.Context) error {
	heard, err := s.host.EventBus().Subscribe([]any{new(event.EvtLocalAddressesUpdated), new(event.EvtPeerIdentificationCompleted)}, eventbus.BufSize(placesBuffer))
	if err != nil {
		return err
	}
	defer heard.Close()
	tick := time.Tick(placesCheck)
	var work errgroup.Group // what takes a while
	defer work.Wait()
	work.SetLimit(orphansMax)
	before, err := s.places.look(time.Now())
	for err == nil {
		select {
		case e := <-heard.Out():
			switch e := e.(type) {
			case event.EvtLocalAddressesUpdated:
				select {
				case s.moved <- struct{}{}:
				default:
				}
			case event.EvtPeerIdentificationCompleted:
				s.hangUp(&work, leftBehind(e, s.host.Network().ConnsToPeer(e.Peer)))
			}
		case now := <-tick:
			held, err := s.places.look(now)
			if err != nil {
				s.cfg.Log.Debug("the addresses of this host are not known", "err", err)
				continue
			}
			s.leave(ctx, &work, slices.DeleteFunc(slices.Clone(before), func(a netip.Addr) bool { return slices.Contains(held, a) }))
			before = held
		case <-ctx.Done():
			return nil
		}
	}
	return err
}

// leftBehind returns the connections with a peer to addresses that are not among those that
// it has now, when it is heard at one of those: as a host that has moved leaves them.
func leftBehind(e event.EvtPeerIdentificationCompleted, all []network.Conn) (stale []network.Conn) {
	its := func(c network.Conn) bool {
		at, ok := ipOf(c.RemoteMultiaddr())
		return ok && slices.ContainsFunc(e.ListenAddrs, func(a ma.Multiaddr) bool { ip, ok := ipOf(a); return ok && ip == at })
	}
	for _, c := range all {
		if its(e.Conn) && !its(c) && !c.Stat().Limited {
			stale = append(stale, c)
		}
	}
	return stale
}

// hangUp closes connections, which takes a while where nobody is at the other end.
func (s *Swarm) hangUp(work *errgroup.Group, conns []network.Conn) {
	for _, c := range conns {
		work.TryGo(c.Close) // else it ends by itself
	}
}

// leave closes the connections of addresses that this host has no more, and dials members
// again that they were with.
func (s *Swarm) leave(ctx context.Context, work *errgroup.Group, gone []netip.Addr) {
	var dead []network.Conn
	for _, c := range s.host.Network().Conns() {
		if ip, ok := ipOf(c.LocalMultiaddr()); ok && slices.Contains(gone, ip) {
			dead = append(dead, c)
		}
	}
	if len(dead) == 0 {
		return
	}
	s.cfg.Log.Info("this host has lost an address; what was connected through it is dialled again", "addresses", gone, "connections", len(dead))
	s.hangUp(work, dead)
	for _, c := range dead {
		if id := c.RemotePeer(); s.proofs.proved(id) {
			work.TryGo(func() error {
				ctx, cancel := context.WithTimeout(ctx, orphansFor)
				defer cancel()
				s.keepDialling(ctx, s.host.Peerstore().PeerInfo(id), func() bool { return !s.connected(id) }, false)
				return nil
			})
		}
	}
}

// Moved has an element whenever the addresses of Info have changed since it was received
// from. It is for one to follow, and never closed.
func (s *Swarm) Moved() <-chan struct{} { return s.moved }
