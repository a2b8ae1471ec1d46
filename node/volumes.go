package node

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
)

// isAway says whether a node is neither in the farm nor connected, nor answers.
func (n *Node) isAway(ctx context.Context, key trust.PublicKey) bool {
	switch n.Membership.Who(key).State {
	case membership.StateRevoked:
		return true
	case membership.StateAway:
		id := identity.PeerID(key)
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return n.swarm.Connect(ctx, peer.AddrInfo{ID: id}) != nil && (n.farm == nil || !slices.Contains(n.farm.Live(), id))
	}
	return false
}

// callMember asks a member about volumes.
func (n *Node) callMember(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error) {
	return n.exchange.Call(ctx, identity.PeerID(to), method, body)
}

// findMember returns a node of this farm by what people call it. One that nobody here has met, as it has just come, is met.
func (n *Node) findMember(ctx context.Context, who string) (trust.PublicKey, string, error) {
	m, err := n.Membership.Find(ctx, who)
	if err == nil && m.Role == "" && m.State != membership.StateRevoked {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if m.Identity, err = n.exchange.Meet(ctx, identity.PeerID(m.Key)); err != nil {
			return m.Key, m.ID, fmt.Errorf("%s: nobody here has met it, and so its farm is not known: %w", m.ID, err)
		}
	}
	if err == nil && m.Farm != n.Farm() {
		err = fmt.Errorf("%w: %s: a volume stays in its farm, which is %s", content.ErrForbidden, m, n.Farm())
	}
	return m.Key, m.String(), err
}

func (n *Node) volumesDir() string { return filepath.Join(n.cfg.Dir, "volumes") }

func (n *Node) openVolumes(ctx context.Context) (err error) {
	n.Volumes, err = volumes.New(ctx, volumes.Config{
		Dir: n.volumesDir(), NBD: n.cfg.NBD, UBLK: n.cfg.UBLK, Self: n.identity.Public(), NodeID: n.swarm.ID().String(), Farm: n.Farm(),
		Who: func(k trust.PublicKey) string { return n.Membership.Who(k).String() }, Called: func(k trust.PublicKey) string { return n.Membership.Who(k).Name }, Away: n.isAway, Call: n.callMember, Member: n.findMember, Returned: n.returned.Load, Library: n.Images, Opened: n.opened, Registry: records.OfVolumes{Names: n.Names, Farm: n.Farm()}, Holders: n.farmHolders(), Origin: n.origin.writable, Signer: n.Membership.Signer(), Keep: n.Images.Keep(content.Farm(n.Farm())), Publish: n.Images.Publish, Now: n.cfg.Now, Log: n.cfg.Log,
	})
	return err
}
