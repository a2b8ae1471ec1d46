package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// pingMethod asks a member for nothing but an answer.
const pingMethod = "ping"

// Ping is how another member is reached.
type Ping struct {
	ID   string    `json:"id"`
	Name string    `json:"name,omitempty" doc:"what the member calls itself, which proves nothing"`
	Farm string    `json:"farm,omitempty" doc:"absent for a seed, which belongs to none"`
	Way  swarm.Way `json:"way" enum:"LAN,direct,relayed" doc:"what the connection with it leads through: where that is a relay, holes had the time to be punched"`
	Path string    `json:"path" doc:"the other end of the connection, or the relay's"`
	// RoundTrips has one for each answer, in the order asked.
	RoundTrips []float64 `json:"round_trip_seconds"`
}

// Ping connects with a member, if there is no connection, has it answer so many times,
// and says by what way. who is its peer ID, its name, what either begins with, or a full
// multiaddr. One that can't be reached, or doesn't answer, is content.ErrUnavailable; who
// answers and is no member content.ErrForbidden.
func (n *Node) Ping(ctx context.Context, who string, times int) (p Ping, err error) {
	info, err := n.whereIs(ctx, who)
	if err != nil {
		return p, err
	}
	if info.ID == n.swarm.ID() {
		return p, fmt.Errorf("ping %s: %w: it is this node itself; name another member", who, content.ErrInvalid)
	}
	path, err := n.swarm.Reach(ctx, info)
	var met trust.Identity
	if err == nil {
		met, err = n.exchange.Meet(ctx, info.ID)
	}
	if err != nil {
		return p, fmt.Errorf("ping %s: %w", who, err)
	}
	p = Ping{ID: info.ID.String(), Name: n.Membership.Who(met.Key).Name, Farm: met.Farm}
	for range times {
		begun := time.Now()
		if _, err := n.exchange.Call(ctx, info.ID, pingMethod, nil); err != nil {
			return p, fmt.Errorf("ping %s: connected at %s (%s), but %d of %d answers came: %w", who, path.Address, path.Way, len(p.RoundTrips), times, err)
		}
		p.RoundTrips = append(p.RoundTrips, time.Since(begun).Seconds())
	}
	if now := n.swarm.Path(info.ID); now.Way != "" { // a better one may have come meanwhile
		path = now
	}
	p.Way, p.Path = path.Way, path.Address
	return p, nil
}

// whereIs returns whom a text names, with addresses if it is one.
func (n *Node) whereIs(ctx context.Context, who string) (peer.AddrInfo, error) {
	if strings.HasPrefix(who, "/") {
		return swarm.ParseAddr(who)
	}
	m, err := n.Membership.Find(ctx, who)
	return peer.AddrInfo{ID: identity.PeerID(m.Key)}, err
}
