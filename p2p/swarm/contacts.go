package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pswarm "github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/origin/content"
)

const (
	dialTimeout = 10 * time.Second
	// dialRetry is how soon an address that did not answer is dialled again, at
	// first; the time doubles up to dialRetryMax.
	dialRetry    = 500 * time.Millisecond
	dialRetryMax = time.Minute
	// dialCheck is how often a member looks whether it is still connected with its
	// bootstrap members.
	dialCheck = 5 * time.Second
	// saveInterval is how often the members connected are kept for a restart.
	saveInterval = 5 * time.Minute
	// fallbackDelay is how long a preferred transport is waited for before the next
	// is tried beside it: one round trip of a long way.
	fallbackDelay = 250 * time.Millisecond
)

// keepConnected dials the bootstrap members whenever one is not connected, so
// that parts of the mesh that lost each other find together again; and the
// members kept from before a restart while nobody is connected.
func (s *Swarm) keepConnected(ctx context.Context) {
	var wg sync.WaitGroup
	for _, info := range s.bootstrap {
		s.host.ConnManager().Protect(info.ID, "bootstrap")
		wg.Go(func() {
			s.keepDialling(ctx, info, func() bool { return !s.connected(info.ID) }, true)
		})
	}
	for _, info := range s.kept {
		wg.Go(func() {
			s.keepDialling(ctx, info, func() bool { return len(s.Peers()) == 0 }, false)
		})
	}
	wg.Wait()
}

// keepDialling connects with a member whenever it is wanted.
func (s *Swarm) keepDialling(ctx context.Context, info peer.AddrInfo, wanted func() bool, bootstrap bool) {
	failures := 0
	for ctx.Err() == nil {
		wait := dialCheck
		if wanted() {
			if n, ok := s.host.Network().(*libp2pswarm.Swarm); ok {
				n.Backoff().Clear(info.ID) // its own would refuse for 5 s what is tried after less here
			}
			err := s.Connect(ctx, info)
			if ctx.Err() != nil {
				return
			}
			s.metrics.dials.WithLabelValues(outcome(err)).Inc()
			if bootstrap {
				s.report(info, failures, err)
			}
			if err != nil {
				wait = min(dialRetry<<min(failures, 10), dialRetryMax)
				wait += rand.N(wait / 4) // so that those who lost it together don't come back together
				failures++
			} else {
				failures = 0
				s.dht.RefreshRoutingTable()
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// report says what became of a bootstrap member after a number of failures.
func (s *Swarm) report(info peer.AddrInfo, failures int, err error) {
	switch {
	case err != nil && failures == 0:
		s.silent.Add(1)
		s.cfg.Log.Warn("a bootstrap member does not answer; it is tried again and again", "err", err)
	case err == nil && failures > 0:
		s.silent.Add(-1)
		s.cfg.Log.Info("a bootstrap member answers again", "peer", info.ID, "failures", failures)
	}
}

func (s *Swarm) connected(id peer.ID) bool {
	return s.host.Network().Connectedness(id) == network.Connected
}

// Connect dials a member, which need not be one of the mesh yet. Its failure is
// content.ErrUnavailable.
func (s *Swarm) Connect(ctx context.Context, info peer.AddrInfo) error {
	if info.ID == s.host.ID() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	err := s.host.Connect(ctx, info)
	if err == nil {
		return nil
	}
	hint := ""
	if text := err.Error(); strings.Contains(text, "EOF") || strings.Contains(text, "CONNECTION_REFUSED") || strings.Contains(text, "connection reset") {
		hint = " (it was reached and hung up: it has banned this member, or takes no more connections, or is something else)"
	}
	return fmt.Errorf("connect with %s: %w: %w%s", info.ID, content.ErrUnavailable, err, hint)
}

// keepPeers keeps the members connected for a restart, now and then and when ctx
// ends.
func (s *Swarm) keepPeers(ctx context.Context) error {
	if s.cfg.PeersFile == "" {
		return nil
	}
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		var err error
		if peers := s.Peers(); len(peers) > 0 { // else those of before are worth more
			err = savePeers(s.cfg.PeersFile, peers)
		}
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			s.cfg.Log.Warn("the addresses of peers can't be kept for a restart", "err", err)
		}
	}
}

// rankDials has TCP tried before QUIC, which costs three times the CPU a byte,
// and both before a relay.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var groups [viaRelay + 1][]ma.Multiaddr
	for _, a := range addrs {
		groups[transportOf(a)] = append(groups[transportOf(a)], a)
	}
	var out []network.AddrDelay
	delay := time.Duration(0)
	for _, group := range groups {
		for _, d := range libp2pswarm.DefaultDialRanker(group) {
			out = append(out, network.AddrDelay{Addr: d.Addr, Delay: delay + d.Delay})
		}
		if len(group) > 0 {
			delay += fallbackDelay
		}
	}
	return out
}

// addrsMax bounds the addresses of a member that the DHT tells of, and believes.
const addrsMax = 16

func someAddrs(addrs []ma.Multiaddr) []ma.Multiaddr { return addrs[:min(len(addrs), addrsMax)] }

// advertised leaves out the addresses of loopback, at which others would reach
// themselves, unless there are no others.
func advertised(addrs []ma.Multiaddr) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, a := range addrs {
		if !manet.IsIPLoopback(a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return addrs
	}
	return out
}

// ParseAddr reads a full multiaddr, with the peer ID at its end.
func ParseAddr(text string) (peer.AddrInfo, error) {
	info, err := peer.AddrInfoFromString(text)
	if err == nil && len(info.Addrs) == 0 {
		err = errors.New("it has a peer ID only")
	}
	if err != nil {
		return peer.AddrInfo{}, fmt.Errorf("address %.200q: %w: %w; want one that ends in /p2p/ID", text, content.ErrInvalid, err)
	}
	return *info, nil
}
