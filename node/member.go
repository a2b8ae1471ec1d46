package node

import (
	"context"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/membership"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
	"github.com/grangemesh/grange/p2p/swarm"
)

// peersFile keeps the addresses of members for a restart.
const peersFile = "peers"

// openMember enters the mesh, or founds one.
func (n *Node) openMember(ctx context.Context) error {
	name, err := n.name()
	if err := n.unlessAwaited("--name", err); err != nil {
		return err
	}
	state, key, err := n.entry().Enter(ctx)
	if err != nil {
		return err
	}
	n.identity = key
	n.Membership, err = membership.Open(membership.Config{
		Dir: n.cfg.Dir, Identity: n.identity, Name: name, Catalog: n.catalog, Told: n.told,
		OnRevoked: n.revoked, OnRotated: n.rotated, OnRenewed: n.renewed,
		Incarnation: func() []byte { return n.signed }, OnIncarnation: n.heardOf, Now: n.cfg.Now, Log: n.cfg.Log,
	}, state)
	if err != nil {
		return err
	}
	n.signer, n.verifier = n.Membership.Signer(), n.Membership.Verifier()
	return nil
}

// name is what others are shown of this member.
func (n *Node) name() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "" // names are for people, who have the IDs too
	}
	return membership.NameOr(n.cfg.Name, host)
}

func (n *Node) entry() membership.Entry {
	return membership.Entry{
		Dir: n.cfg.Dir, Join: n.cfg.Join, Farm: n.cfg.Farm, FarmDefault: FarmDefault, Origin: n.cfg.originURL(),
		Bootstrap: n.cfg.Bootstrap, Now: n.cfg.Now, Log: n.cfg.Log,
	}
}

// catalog is where revocations outlive all members.
func (n *Node) catalog() (*catalog.Catalog, bool) {
	if w := n.origin.writer(); w != nil {
		return w, true
	}
	return n.origin.records(), false
}

// told takes a revocation that was read at the origin.
func (n *Node) told(r catalog.Record, asked time.Time) {
	if err := n.Names.Told(r, asked); err != nil {
		n.cfg.Log.Debug("a revocation at the origin", "name", r.Name, "err", err)
	}
}

// revoked cuts off those who are no members any more, and has what was believed of
// others checked again.
func (n *Node) revoked(fresh []trust.PublicKey) {
	n.exchange.Recheck()
	for _, key := range fresh { // who has shown nothing is connected all the same
		n.swarm.Dismiss(identity.PeerID(key))
	}
	if n.farm != nil {
		n.farm.Recheck()
	}
	n.Names.Recheck()
}

// rotated goes over to new secrets.
func (n *Node) rotated(s trust.Secrets) {
	if n.farm == nil {
		return
	}
	if err := n.farm.Rotate(s.Gossip); err != nil {
		n.cfg.Log.Error("the farm's gossip stays with its old key until a restart", "err", err)
	}
}

// renewed shows another certificate from now on.
func (n *Node) renewed(chain trust.Chain) {
	if err := n.exchange.Present(chain); err != nil {
		n.cfg.Log.Error("members are shown the old certificate until a restart", "err", err)
	}
}

// reach is how the membership reaches others.
type reach struct {
	*exchange.Exchange
	swarm *swarm.Swarm
}

// Peers implements membership.Network.
func (r reach) Peers() []peer.ID {
	var out []peer.ID
	for _, p := range r.swarm.Peers() {
		out = append(out, p.ID)
	}
	return out
}
