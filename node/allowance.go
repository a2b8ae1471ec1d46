package node

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// openAllowance opens what a seed has sent and may; a node sends what it is asked for.
func (n *Node) openAllowance(context.Context) (err error) {
	if n.cfg.Role != trust.RoleSeed {
		return nil
	}
	cfg := seed.Config{Terms: n.cfg.Terms, Path: filepath.Join(n.cfg.Dir, "sent"), Now: n.cfg.Now, Log: n.cfg.Log}
	if n.allowance, err = seed.Open(cfg); err == nil {
		n.undo = append(n.undo, n.allowance.Close)
	}
	return err
}

func (n *Node) closeAllowance() error {
	if n.allowance == nil {
		return nil
	}
	return n.allowance.Close()
}

// Allow counts bytes of content that are about to go out, 0 standing for some; an error,
// content.ErrUnavailable, if they may not.
func (n *Node) Allow(bytes int) error {
	if n.allowance == nil {
		return nil
	}
	return n.allowance.Take(bytes)
}

func (n *Node) serves() bool { return n.Allow(0) == nil }

// carried counts what has gone out for others, and holds it up.
func (n *Node) carried(ctx context.Context, bytes int) {
	n.exchange.Spend(bytes)
	n.allowance.Carried(ctx, bytes)
}

// served notes whom content went to.
func (n *Node) served(to peer.ID, root content.CID, bytes int64) {
	if n.allowance == nil || bytes == 0 {
		return
	}
	name := fmt.Sprintf("%.16s…", root)
	if k, ok := n.Names.OfRoot(root, content.Public()); ok {
		name = k.Name
	}
	n.allowance.Served(to.String(), name, bytes)
}

// hoursCheck is how often it is looked which window of its schedule a seed is in.
const hoursCheck = 5 * time.Second

// keepAllowance has the rate follow the schedule, until ctx ends.
func (n *Node) keepAllowance(ctx context.Context) error {
	if n.allowance == nil {
		return nil
	}
	tick := time.Tick(hoursCheck)
	for before := int64(0); ; {
		if now := n.allowance.Rate(); now != before {
			before = now
			n.exchange.SetUploadRate(now)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}
