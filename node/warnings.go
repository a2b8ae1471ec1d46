package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/p2p/swarm"
)

const (
	// warnInterval is how often it is looked for what to warn of, and warnAfter how long a
	// start may take until others must be in reach.
	warnInterval = 5 * time.Second
	warnAfter    = 10 * time.Second
	// avoidableSpan is how far back bytes are looked at that members might have given, and
	// avoidableMin how many of them are worth a warning: more than a slow member costs.
	avoidableSpan = 10 * time.Minute
	avoidableMin  = 64 << 20
)

// Warning is what is amiss though the node is ready, and what to do about it.
type Warning struct {
	About string `json:"about" doc:"farm, mesh, paths, origin, origin gc, origin verify, follow, or a volume as volume:NAME"`
	Text  string `json:"text"`
}

// avoidable is how many bytes had been read from the origin though members showed them, at
// each look of the last minutes. Safe for concurrent use.
type avoidable struct {
	mu    sync.Mutex // guards looks
	looks []int64    // the oldest first, warnInterval apart
}

// look notes a count, and grown is how much it has grown.
func (a *avoidable) look(now int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.looks = append(a.looks, now)
	a.looks = a.looks[max(0, len(a.looks)-int(avoidableSpan/warnInterval)):]
}

func (a *avoidable) grown(now int64) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.looks) == 0 {
		return 0
	}
	return now - a.looks[0]
}

// Warnings says what is amiss, above all that others are out of reach: then all is read from
// the origin, which nobody would see.
func (n *Node) Warnings() []Warning {
	out := []Warning{}
	warn := func(about, format string, args ...any) {
		out = append(out, Warning{about, fmt.Sprintf(format, args...)})
	}
	if n.cfg.Now().Sub(n.started) > warnAfter {
		n.warnOfReach(warn)
	}
	if m := n.fetch.Tally().Avoidable.Load(); n.avoidable.grown(m) > avoidableMin {
		var failing []string
		for _, p := range n.Peers() {
			if !p.Until.IsZero() {
				failing = append(failing, fmt.Sprintf("%s (%s)", cmp.Or(p.Name, p.ID), cmp.Or(p.Failure, p.Why, p.State)))
			}
		}
		warn("origin", "%d MiB came from the origin in the last %s though members have them, which were slow or passed over: %s; `grange mesh peers` and `grange why VOLUME` say more", n.avoidable.grown(m)>>20, avoidableSpan, cmp.Or(strings.Join(failing, ", "), "none is passed over now"))
	}
	if f := n.Images.Followed(); f != nil && f.Names >= images.FollowedMax {
		warn("follow", "this node follows %d names, and no more: others that match %s are not kept warm; give --follow longer patterns, or spread them over nodes", f.Names, strings.Join(f.Patterns, ", "))
	}
	n.Upkeep.Warn(warn)
	if n.Volumes == nil {
		return out
	}
	for _, v := range n.Volumes.List() {
		switch held := cmp.Or(strings.Join(v.Holders, ", "), "nobody"); {
		case v.Node != n.swarm.ID().String():
		case !v.Degraded.IsZero():
			warn("volume:"+v.Name, "degraded since %s: what it writes is on this node's disk alone, as --degrade local allows; it is kept elsewhere again once enough of the farm answer (its holders: %s)", v.Degraded.UTC().Format(time.RFC3339), held)
		case v.Short:
			warn("volume:"+v.Name, "too few members hold what it writes (%s): its flushes wait, and fail; bring members of the farm back, or make room on their disks", held)
		}
	}
	return out
}

// warnOfReach warns of members that are known and not in reach.
func (n *Node) warnOfReach(warn func(about, format string, args ...any)) {
	hood, peers := n.Neighbourhood(), n.swarm.Peers()
	ours := slices.DeleteFunc(n.Peers(), func(p Peer) bool { return p.Farm != n.Farm() || p.Way == "" })
	boot := slices.DeleteFunc(slices.Concat(n.cfg.Bootstrap, n.Membership.State().Bootstrap), func(a string) bool { return strings.HasSuffix(a, n.swarm.ID().String()) })
	relayed := func() bool {
		for _, p := range peers {
			if n.swarm.Path(p.ID).Way != swarm.Through {
				return false
			}
		}
		return true
	}
	if hood.State == FarmCutOff {
		warn("farm", "no neighbour is in reach, so nothing is had from this farm: %s; see that they run, that --farm-bind and --farm-join name the right addresses, and that TCP and UDP pass there", hood.Detail)
	}
	switch near := len(n.FarmPeers()); {
	case len(peers) == 0 && near > 0:
		warn("mesh", "%d neighbours gossip, but none can be connected with: all is read from the origin; let TCP and UDP pass to the ports of --listen, here and there", near)
	case len(peers) == 0 && len(boot) > 0:
		warn("mesh", "no member of the mesh is in reach, so nothing is had from any: %s do not answer; see that they run, and that TCP and UDP pass to them, or give --bootstrap others", strings.Join(boot[:min(len(boot), lostShown)], ", "))
	case n.farm == nil && hood.State == FarmNone && n.Farm() != "" && len(ours) > 0:
		warn("farm", "%d members of farm %q are connected, but without --farm-bind this node is none of their neighbours: each reads the origin for itself", len(ours), n.Farm())
	case len(peers) > 0 && relayed():
		warn("paths", "all of %d members are reached through relays alone, which is slow: let UDP out, or forward a port and give its address with --announce", len(peers))
	}
}

// keepWarned says each warning in the log when it is new, and when it is over, until ctx ends.
func (n *Node) keepWarned(ctx context.Context) error {
	tick := time.Tick(warnInterval)
	said := map[string]bool{}
	for {
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
		n.avoidable.look(n.fetch.Tally().Avoidable.Load())
		now := map[string]bool{}
		for _, w := range n.Warnings() {
			if now[w.About] = true; !said[w.About] {
				n.cfg.Log.Warn("something is amiss", "about", w.About, "what", w.Text)
			}
		}
		for about := range said {
			if !now[about] {
				n.cfg.Log.Info("what was amiss is over", "about", about)
			}
		}
		said = now
	}
}
