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
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/p2p/lan"
)

const (
	// placesCheck is how often a member looks at the addresses of its host. One that is
	// back by the next look keeps its connections.
	placesCheck = 2 * time.Second
	// placesBuffer takes what is heard between two looks: a mesh that greets at once.
	placesBuffer = 1024
	// orphansFor is how long those are looked for whose connections went with an address,
	// and orphansParallel how many at a time.
	orphansFor      = 10 * time.Minute
	orphansParallel = 16
	// readdress is how soon roots are announced anew at other addresses, at most: a host
	// may have one that comes and goes.
	readdress = time.Minute
)

// places are the addresses of this host, as they were at the last look.
type places struct {
	own atomic.Pointer[[]lan.Address]

	mu     sync.Mutex // guards what follows
	held   []netip.Addr
	past   []netip.Addr // held before, the last ones
	looked time.Time
}

// pastMax bounds the addresses that are remembered as this host's of before.
const pastMax = 256

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
		for _, a := range p.held {
			if !slices.Contains(held, a) {
				p.past = append(p.past[max(0, len(p.past)-pastMax):], a)
			}
		}
		p.past = slices.DeleteFunc(p.past, func(a netip.Addr) bool { return slices.Contains(held, a) })
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

// without returns the addresses that are not those of this host of before.
func (p *places) without(all []ma.Multiaddr) []ma.Multiaddr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(all), func(a ma.Multiaddr) bool {
		ip, ok := ipOf(a)
		return ok && slices.Contains(p.past, ip)
	})
}

// hides reports whether this host has no address of the world's in a family of addresses.
func (p *places) hides(family netip.Addr) bool {
	own := p.own.Load()
	return own == nil || !slices.ContainsFunc(*own, func(a lan.Address) bool {
		at, err := manet.FromIP(a.Addr().AsSlice())
		return !a.Inner && a.Addr().Is4() == family.Is4() && err == nil && manet.IsPublicAddr(at)
	})
}

// ends says of connections that the peer calls the address at its end its own.
type ends map[network.Conn]bool

// heard takes the addresses that a peer says it has now, over one of its connections. It
// returns those of the others that lead to an address that it had and has no more, as a
// host that has moved leaves behind.
func (e ends) heard(over network.Conn, listening []ma.Multiaddr, all []network.Conn) (stale []network.Conn) {
	for _, c := range all {
		ip, ok := ipOf(c.RemoteMultiaddr())
		if !ok || c.Stat().Limited {
			continue
		}
		its := slices.ContainsFunc(listening, func(a ma.Multiaddr) bool {
			x, ok := ipOf(a)
			return ok && x == ip
		})
		switch {
		case its:
			e[c] = true
		case e[c] && c != over:
			stale = append(stale, c)
		}
	}
	return stale
}

// orphans are members whose connections went with an address of this host, and until when
// they are looked for.
type orphans map[peer.ID]time.Time

// keepPlaces follows the addresses of this host, and those of peers, as they come and go,
// until ctx ends: connections that lead nowhere any more are closed, others made.
func (s *Swarm) keepPlaces(ctx context.Context) error {
	heard, err := s.host.EventBus().Subscribe([]any{new(event.EvtLocalAddressesUpdated), new(event.EvtPeerIdentificationCompleted)}, eventbus.BufSize(placesBuffer))
	if err != nil {
		return err
	}
	defer heard.Close()
	tick := time.NewTicker(placesCheck)
	defer tick.Stop()
	var work sync.WaitGroup // what takes a while
	defer work.Wait()
	k := keeper{s: s, work: &work, ends: ends{}, orphans: orphans{}}
	for {
		select {
		case e := <-heard.Out():
			k.hear(e)
		case now := <-tick.C:
			k.look(ctx, now)
		case <-ctx.Done():
			return nil
		}
	}
}

// keeper is the state of keepPlaces.
type keeper struct {
	s        *Swarm
	work     *sync.WaitGroup
	ends     ends
	orphans  orphans
	before   []netip.Addr // held at the last look
	missing  []netip.Addr // not held then any more
	moved    bool         // roots are to be announced at other addresses
	told     time.Time    // when they were
	adopting atomic.Bool
}

func (k *keeper) hear(e any) {
	switch e := e.(type) {
	case event.EvtLocalAddressesUpdated:
		k.moved = true
		select {
		case k.s.moved <- struct{}{}:
		default:
		}
	case event.EvtPeerIdentificationCompleted:
		k.close(k.ends.heard(e.Conn, e.ListenAddrs, k.s.host.Network().ConnsToPeer(e.Peer)))
	}
}

// close closes connections, which those that lead nowhere take a while for.
func (k *keeper) close(conns []network.Conn) {
	for _, c := range conns {
		k.work.Go(func() { c.Close() })
	}
}

func (k *keeper) look(ctx context.Context, now time.Time) {
	for c := range k.ends {
		if c.IsClosed() {
			delete(k.ends, c)
		}
	}
	if k.moved && now.Sub(k.told) >= readdress {
		k.moved, k.told = false, now
		k.s.announced.again()
	}
	held, err := k.s.places.look(now)
	if err != nil {
		k.s.cfg.Log.Debug("the addresses of this host are not known", "err", err)
		return
	}
	gone := slices.DeleteFunc(k.missing, func(a netip.Addr) bool { return slices.Contains(held, a) })
	k.missing = slices.DeleteFunc(k.before, func(a netip.Addr) bool { return slices.Contains(held, a) })
	k.before = slices.Clone(held)
	k.adopt(ctx, now)
	if len(gone) > 0 {
		k.leave(gone, now)
	}
}

// leave closes the connections of addresses that this host has no more.
func (k *keeper) leave(gone []netip.Addr, now time.Time) {
	var dead []network.Conn
	for _, c := range k.s.host.Network().Conns() {
		if ip, ok := ipOf(c.LocalMultiaddr()); ok && slices.Contains(gone, ip) {
			dead = append(dead, c)
			if k.s.proofs.proved(c.RemotePeer()) {
				k.orphans[c.RemotePeer()] = now.Add(orphansFor)
			}
		}
	}
	if len(dead) > 0 {
		k.s.cfg.Log.Info("this host has lost an address; what was connected through it is dialled again", "addresses", gone, "connections", len(dead))
	}
	k.close(dead)
}

// adopt dials the orphans that are not connected.
func (k *keeper) adopt(ctx context.Context, now time.Time) {
	var lost []peer.AddrInfo
	for id, until := range k.orphans {
		switch {
		case k.s.connected(id) || now.After(until):
			delete(k.orphans, id)
		default:
			lost = append(lost, k.s.host.Peerstore().PeerInfo(id))
		}
	}
	if len(lost) == 0 || !k.adopting.CompareAndSwap(false, true) {
		return
	}
	k.work.Go(func() {
		defer k.adopting.Store(false)
		var group errgroup.Group
		group.SetLimit(orphansParallel)
		for _, info := range lost {
			group.Go(func() error {
				if err := k.s.Connect(ctx, info); err != nil {
					k.s.cfg.Log.Debug("a member can't be reached from another address yet", "err", err)
				}
				return nil
			})
		}
		group.Wait()
	})
}

// Moved has an element whenever the addresses of Info have changed since it was received
// from. It is for one to follow, and never closed.
func (s *Swarm) Moved() <-chan struct{} { return s.moved }
