package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/node/volumes/holders"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// sweepHeldAfter is how often it is looked whether volumes of others, that this node holds
// something of, need it still: each that nobody has spoken of costs the read of a record.
const sweepHeldAfter = 10 * time.Minute

func (n *Node) openHeld() (err error) {
	if !servicesOf(n.cfg.Role).volumes {
		return nil
	}
	n.held, err = holders.Open(holders.StoreConfig{Dir: filepath.Join(n.cfg.Dir, "held"), Farm: n.Farm(), Log: n.cfg.Log})
	if err == nil {
		n.undo = append(n.undo, n.held.Close)
	}
	return err
}

// journals is what the exchange asks for it; nil where nothing is held.
func (n *Node) journals() exchange.Holder {
	if n.held == nil {
		return nil
	}
	return n.held
}

// keepHeld lets go of what no record needs any more, until ctx ends.
func (n *Node) keepHeld(ctx context.Context) error {
	if n.held == nil {
		return nil
	}
	tick := time.Tick(sweepHeldAfter)
	for {
		select {
		case <-tick:
			n.held.Sweep(ctx, n.cfg.Now(), n.saidOf)
		case <-ctx.Done():
			return n.held.Close()
		}
	}
}

// saidOf is what the record of a volume says to a holder, for sure.
func (n *Node) saidOf(ctx context.Context, name string) (holders.Said, error) {
	r, err := (records.OfVolumes{Names: n.Names, Farm: n.Farm()}).SureVolume(ctx, name)
	if r.Tombstone && errors.Is(err, content.ErrNotFound) {
		return holders.Said{Version: r.Version}, nil
	}
	if err != nil {
		return holders.Said{}, err
	}
	body, err := catalog.DecodeVolume(n.codec, r.Body)
	return holders.Said{Version: r.Version, ID: body.ID, Epoch: body.Epoch, Base: body.Through(), Holder: slices.Contains(body.Holders, n.identity.Public())}, err
}

// farmHolders are the members of this farm, as those who may hold what volumes write.
func (n *Node) farmHolders() *holders.Farm {
	self := exchange.Peer{ID: n.swarm.ID(), Identity: n.Membership.Identity()}
	return &holders.Farm{
		Lane: holders.Near{Lane: n.exchange, Store: n.held, Self: self}, Self: n.identity.Public(), Fills: make(chan struct{}, holders.FillsMax), Log: n.cfg.Log,
		Live: func() (out []trust.PublicKey) {
			if n.farm == nil {
				return nil
			}
			for _, m := range n.farm.Members() {
				if m.ID != n.swarm.ID() {
					out = append(out, m.Identity.Key)
				}
			}
			return out
		},
	}
}
