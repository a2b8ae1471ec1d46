package swarm

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/identity"
)

const (
	// guestCheck is how often the connections with guests are looked over.
	guestCheck = time.Second
	// guestsMax bounds them: newcomers, members just connected, and public readers.
	guestsMax = 256
	// guestIdle is how long one without a stream is kept. A newcomer asks at once.
	guestIdle = 30 * time.Second
	// guestStreams bounds the streams of one: twice an exchange's, and the libraries' own.
	guestStreams = 32
	// proversMax bounds the guests that are asked for their proof at a time.
	proversMax = 16
	// memberTag is the weight of a member when there are too many connections.
	memberTag = 100
)

// guest is a connection with a peer that has not proved that it is a member.
type guest struct {
	site    string // a farm's address
	opened  time.Time
	streams int
}

// surplus returns the indexes of the guests whose connections are to be closed: those
// that want nothing or too much, and what is over limit, of the site that has the most
// of them, the oldest first. So who floods from one address pushes out its own.
func surplus(guests []guest, now time.Time, limit int) []int {
	var out []int
	sites := map[string][]int{}
	left := 0
	for i, g := range guests {
		if g.streams > guestStreams || g.streams == 0 && now.Sub(g.opened) > guestIdle {
			out = append(out, i)
			continue
		}
		sites[g.site] = append(sites[g.site], i)
		left++
	}
	if left <= limit {
		return out
	}
	for _, of := range sites {
		slices.SortFunc(of, func(a, b int) int { return guests[a].opened.Compare(guests[b].opened) })
	}
	for ; left > limit; left-- {
		most := ""
		for site, of := range sites {
			if cmp.Or(cmp.Compare(len(of), len(sites[most])), cmp.Compare(site, most)) > 0 {
				most = site
			}
		}
		out = append(out, sites[most][0])
		sites[most] = sites[most][1:]
	}
	return out
}

// siteOf is the address that a connection's farm is behind, as limits.go counts sites.
func siteOf(c network.Conn) string {
	a, ok := ipOf(c.RemoteMultiaddr())
	if !ok { // through a relay
		return "relayed"
	}
	bits := siteBits6
	if a.Is4() {
		bits = siteBits4
	}
	p, _ := a.Prefix(bits)
	return p.String()
}

// keepGuests has peers prove that they are members, lets those in that have, and closes
// connections with others, until ctx ends.
func (s *Swarm) keepGuests(ctx context.Context) error {
	changed, err := s.host.EventBus().Emitter(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		return err
	}
	defer changed.Close()
	dialled := make(chan struct{}, 1)
	watch := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.Stat().Direction == network.DirOutbound { // the one that was dialled leaves it to us
			select {
			case dialled <- struct{}{}:
			default:
			}
		}
	}}
	s.host.Network().Notify(watch)
	defer s.host.Network().StopNotify(watch)
	tick := time.Tick(guestCheck)
	var proving errgroup.Group
	defer proving.Wait()
	proving.SetLimit(proversMax)
	for {
		select {
		case id := <-s.proved:
			s.host.ConnManager().TagPeer(id, "member", memberTag)
			// the DHT has looked at it before, and looks again
			if err := changed.Emit(event.EvtPeerProtocolsUpdated{Peer: id}); err != nil {
				return err
			}
			continue
		case <-dialled:
		case <-tick:
		case <-ctx.Done():
			return nil
		}
		for _, id := range s.lookOver(time.Now()) {
			proving.TryGo(func() error { // else next time, or it proves itself meanwhile
				s.proofs.wait(ctx, id)
				return nil
			})
		}
	}
}

// lookOver closes the connections of surplus guests, and returns whom to have proved.
func (s *Swarm) lookOver(now time.Time) (unproved []peer.ID) {
	var guests []guest
	var conns []network.Conn
	for _, c := range s.host.Network().Conns() {
		id := c.RemotePeer()
		if s.proofs.proved(id) {
			continue
		}
		stat := c.Stat()
		if !s.proofs.doubted(id) && !slices.Contains(unproved, id) &&
			(stat.Direction == network.DirOutbound || now.Sub(stat.Opened) > guestCheck/2) {
			unproved = append(unproved, id)
		}
		guests = append(guests, guest{siteOf(c), stat.Opened, stat.NumStreams})
		conns = append(conns, c)
	}
	s.guests.Store(int64(len(guests)))
	for _, i := range surplus(guests, now, guestsMax) {
		conns[i].Close()
	}
	return unproved
}

// Welcome says that a peer has proved that it is a member. It does not block.
func (s *Swarm) Welcome(id peer.ID) {
	select {
	case s.proved <- id:
	default: // thousands at once: the DHT finds them by and by
	}
}

// Dismiss closes the connections of who is no member any more, but maybe a stranger.
func (s *Swarm) Dismiss(id peer.ID) {
	s.host.ConnManager().UntagPeer(id, "member")
	s.dht.RoutingTable().RemovePeer(id)
	s.host.Network().ClosePeer(id)
}

// gatedHost is the host that the DHT sees: strangers' requests and records do not reach
// it, nor do its own go to strangers. It waits for who has not proved itself yet.
type gatedHost struct {
	host.Host
	proofs *proofs
}

// errStranger is for who has not proved that it is a member.
var errStranger = fmt.Errorf("%w: the peer has not proved that it is a member", content.ErrForbidden)

func (h gatedHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	if !h.proofs.wait(ctx, id) {
		return nil, fmt.Errorf("ask %s: %w", id, errStranger)
	}
	return h.Host.NewStream(ctx, id, protocols...)
}

func (h gatedHost) SetStreamHandler(id protocol.ID, serve network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		ctx, cancel := context.WithTimeout(context.Background(), proveTimeout) // a handler has no other
		defer cancel()
		if !h.proofs.wait(ctx, s.Conn().RemotePeer()) {
			s.Reset()
			return
		}
		serve(s)
	})
}

const (
	// proveTimeout bounds the wait for a peer's proof: a connection, and a round trip.
	proveTimeout = 2 * time.Second
	// doubtFor is how long one that could not is not asked again, so that strangers
	// cost little. One that proves itself of its own accord is believed at once.
	doubtFor = 10 * time.Second
	// doubtsMax bounds those that are remembered; beyond it some are asked again.
	doubtsMax = 4096
	// provingMax bounds the proofs that are waited for, each by a stream or a search.
	provingMax = 128
)

// proofs says which peers are members of the mesh, and waits for them to prove it.
type proofs struct {
	proved func(peer.ID) bool
	prove  func(context.Context, peer.ID) bool
	places *semaphore.Weighted // for who waits

	mu     sync.Mutex            // guards doubts
	doubts map[peer.ID]time.Time // until when
}

func newProofs(proved func(peer.ID) bool, prove func(context.Context, peer.ID) bool) *proofs {
	return &proofs{proved: proved, prove: prove, places: semaphore.NewWeighted(provingMax), doubts: map[peer.ID]time.Time{}}
}

// wait reports whether a peer is a member. One that has not proved it yet is given
// proveTimeout, and then nobody waits for it for a while.
func (p *proofs) wait(ctx context.Context, id peer.ID) bool {
	if p.proved(id) {
		return true
	}
	if p.prove == nil || p.doubted(id) || !p.places.TryAcquire(1) {
		return false
	}
	defer p.places.Release(1)
	late, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	ok := p.prove(late, id)
	if !ok && ctx.Err() == nil {
		p.doubt(id)
	}
	return ok
}

// doubted reports whether a peer could not prove itself a while ago.
func (p *proofs) doubted(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.doubts[id])
}

// doubt remembers a peer that could not prove itself.
func (p *proofs) doubt(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for other := range p.doubts {
		if len(p.doubts) < doubtsMax {
			break
		}
		delete(p.doubts, other)
	}
	p.doubts[id] = time.Now().Add(doubtFor)
}

// doorkeeper is what libp2p asks whom to connect with, where that names the peer.
type doorkeeper struct {
	ledger  *identity.Ledger
	revoked *atomic.Int64 // times that one with a revoked key has come
}

func (d doorkeeper) InterceptPeerDial(id peer.ID) bool { return !d.ledger.ShutOut(id) }

func (doorkeeper) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

func (doorkeeper) InterceptAccept(network.ConnMultiaddrs) bool { return true }

func (d doorkeeper) InterceptSecured(from network.Direction, id peer.ID, _ network.ConnMultiaddrs) bool {
	if from == network.DirInbound && d.ledger.Revoked(id) {
		d.revoked.Add(1)
	}
	return !d.ledger.ShutOut(id)
}

func (doorkeeper) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
