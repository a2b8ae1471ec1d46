package node

import (
	"context"

	"github.com/grangemesh/grange/p2p/farm"
	"github.com/grangemesh/grange/p2p/swarm"
)

// checkAddresses finds addresses that can't be, and those of this host that can't be
// told, before a mesh is founded or a token spent.
func (n *Node) checkAddresses(context.Context) error {
	_, _, err := swarm.CheckAddrs(n.cfg.Listen, n.cfg.Announce)
	if err == nil && n.cfg.FarmBind != "" {
		_, err = farm.Place(n.cfg.FarmBind, n.cfg.FarmJoin)
	}
	return err
}
