package exchange

import (
	"maps"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// trafficPeers is of how many peers it is known what went between us, the latest ones:
// all members of a large mesh that this one has to do with, some hundred bytes each.
const trafficPeers = 4096

// Moved is what went between this member and a peer: bytes of data frames.
type Moved struct{ Sent, Received int64 }

// Served is what was sent to askers of a kind, and to how many of them; one that comes back
// after trafficPeers others counts anew.
type Served struct {
	Bytes int64
	Peers int
}

// traffic counts what is moved since the start.
type traffic struct {
	mu    sync.Mutex // guards what follows
	peers *simplelru.LRU[peer.ID, *Moved]
	roles map[trust.Role]Served
}

func newTraffic() traffic {
	peers, _ := simplelru.NewLRU[peer.ID, *Moved](trafficPeers, nil) // fails for sizes below 1 only
	return traffic{peers: peers, roles: map[trust.Role]Served{}}
}

// of returns the account of a peer. The caller holds mu.
func (t *traffic) of(id peer.ID) *Moved {
	m, ok := t.peers.Get(id)
	if !ok {
		m = new(Moved)
		t.peers.Add(id, m)
	}
	return m
}

func (t *traffic) sent(id peer.ID, role trust.Role, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, s := t.of(id), t.roles[role]
	if m.Sent == 0 {
		s.Peers++
	}
	s.Bytes += int64(n)
	m.Sent += int64(n)
	t.roles[role] = s
}

func (t *traffic) received(id peer.ID, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(id).Received += int64(n)
}

// Served returns what was sent since the start, by the askers' role; that of strangers is "".
func (x *Exchange) Served() map[trust.Role]Served {
	x.traffic.mu.Lock()
	defer x.traffic.mu.Unlock()
	return maps.Clone(x.traffic.roles)
}

// With returns what went between this member and a peer since the start; nothing, if that
// was long ago and with many others since.
func (x *Exchange) With(id peer.ID) Moved {
	x.traffic.mu.Lock()
	defer x.traffic.mu.Unlock()
	m, _ := x.traffic.peers.Peek(id)
	if m == nil {
		return Moved{}
	}
	return *m
}

// spare is what this member has left for who asks next: its share of the rate when all who
// wait have theirs.
func (x *Exchange) spare() wire.Spare {
	rate, limit := x.askers.up.Rate(), x.uploadRate.Load()
	if limit > 0 && (rate == 0 || limit < rate) {
		rate = limit
	}
	return wire.SpareOf(rate / int64(x.turns.Waiting()+1))
}
