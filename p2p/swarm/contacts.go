package swarm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pswarm "github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	dialTimeout = 10 * time.Second
	// dialRetry is how soon an address that did not answer is dialled again, at
	// first; the time doubles up to dialRetryMax.
	dialRetry    = 500 * time.Millisecond
	dialRetryMax = time.Minute
	// dialCheck is how often the connections with bootstrap members are looked at.
	dialCheck = 5 * time.Second
	// saveInterval is how often the members connected are kept for a restart.
	saveInterval = 5 * time.Minute
	// fallbackDelay is the wait for a preferred transport: a round trip of a long way.
	fallbackDelay = 250 * time.Millisecond
	// nearDelay is how much later addresses outside this host's subnets are tried.
	nearDelay = 20 * time.Millisecond
	// punchDelay is how much later than by QUIC one that is behind a NAT tries TCP: QUIC is
	// faster where it gets through, and where it does not nobody feels it.
	punchDelay = 50 * time.Millisecond
	// addrsShown is how many addresses the message of a failed dial has.
	addrsShown = 3
	// knocksMax bounds the addresses of a member that are tried side by side.
	knocksMax = 128
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
			err := s.connectNow(ctx, info)
			if ctx.Err() != nil {
				return
			}
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

// connectNow is Connect also where that has failed within the last 5 s, for which libp2p
// would not try again.
func (s *Swarm) connectNow(ctx context.Context, info peer.AddrInfo) error {
	if n, ok := s.host.Network().(*libp2pswarm.Swarm); ok {
		n.Backoff().Clear(info.ID)
	}
	return s.Connect(ctx, info)
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

// Connect dials a member, which need not be one of the mesh yet, at all its addresses
// side by side. Its failure is content.ErrUnavailable.
func (s *Swarm) Connect(ctx context.Context, info peer.AddrInfo) error {
	if info.ID == s.host.ID() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var err error
	if len(info.Addrs) <= libp2pswarm.DefaultPerPeerRateLimit {
		err = s.host.Connect(ctx, info)
	} else {
		err = s.connectAtMany(ctx, info)
	}
	if err == nil {
		return nil
	}
	hint := ""
	if text := err.Error(); strings.Contains(text, "EOF") || strings.Contains(text, "CONNECTION_REFUSED") || strings.Contains(text, "connection reset") {
		hint = " (it was reached and hung up: it has banned this member, or takes no more connections, or is something else)"
	}
	return fmt.Errorf("connect with %s: %w: %s%s", info.ID, content.ErrUnavailable, brief(err), hint)
}

// brief says on one line how dialling failed, as far as it is of use.
func brief(err error) string {
	all, ok := errors.AsType[*libp2pswarm.DialError](err)
	if !ok || len(all.DialErrors) == 0 {
		return err.Error()
	}
	var out []string
	for _, e := range all.DialErrors[:min(len(all.DialErrors), addrsShown)] {
		out = append(out, fmt.Sprintf("%s: %v", e.Address, e.Cause))
	}
	if more := len(all.DialErrors) - addrsShown; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(out, ", ")
}

// connectAtMany connects with a member of more addresses than libp2p dials at a time,
// each for seconds when nobody is there: only where somebody is does it dial.
func (s *Swarm) connectAtMany(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ranked := s.rankDials(info.Addrs)
	ended := make(chan error, len(ranked))
	for _, r := range ranked[:min(len(ranked), knocksMax)] {
		go func() {
			err := knock(ctx, r)
			if err == nil {
				err = s.host.Connect(ctx, peer.AddrInfo{ID: info.ID, Addrs: []ma.Multiaddr{r.Addr}})
			}
			ended <- err
		}()
	}
	var errs []error
	for range ranked[:min(len(ranked), knocksMax)] {
		err := <-ended
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("none of its %d addresses: %w", len(ranked), errs[len(errs)-1])
}

// knock returns nil when it is an address's turn and somebody answers there, or that
// can't be known before it is dialled.
func knock(ctx context.Context, r network.AddrDelay) error {
	select {
	case <-time.After(r.Delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	proto, at, err := manet.DialArgs(r.Addr)
	if err != nil || transportOf(r.Addr) != viaTCP {
		return nil
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, proto, at)
	if err != nil {
		return err
	}
	return c.Close()
}

// keepPeers keeps the members connected for a restart, now and then and when ctx ends.
func (s *Swarm) keepPeers(ctx context.Context) error {
	if s.cfg.PeersFile == "" {
		return nil
	}
	tick := time.Tick(saveInterval)
	for {
		select {
		case <-tick:
		case <-ctx.Done():
		}
		var err error
		if peers := s.reached(); len(peers) > 0 { // else those of before are worth more
			err = durable.WriteFile(s.cfg.PeersFile, encodePeers(peers), 0o600)
		}
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			s.cfg.Log.Warn("the addresses of peers can't be kept for a restart", "err", err)
		}
	}
}

// reached returns the Peers with the addresses at which they were reached first.
func (s *Swarm) reached() []peer.AddrInfo {
	peers := s.Peers()
	for i, p := range peers {
		if at := s.Reached(p.ID); at != nil {
			peers[i].Addrs = append([]ma.Multiaddr{at}, slices.DeleteFunc(p.Addrs, at.Equal)...)
		}
	}
	return peers
}

// Reached returns the address at which this member has reached another that it is
// connected with; nil when it was reached itself, or through a relay.
func (s *Swarm) Reached(id peer.ID) ma.Multiaddr {
	for _, c := range s.host.Network().ConnsToPeer(id) {
		if c.Stat().Direction == network.DirOutbound && !c.Stat().Limited {
			return c.RemoteMultiaddr()
		}
	}
	return nil
}

// The file of peers lets a member back into the mesh when its bootstrap addresses
// are gone. It is text in UTF-8: a line of magic and version, then one full
// multiaddr a line, each ended by a newline:
//
//	grange peers 1
//	/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…
const (
	peersMagic = "grange peers 1\n"
	// keptMax bounds the members kept, and keptAddrsMax the addresses of each.
	keptMax      = 32
	keptAddrsMax = 4
)

// encodePeers leaves out what is beyond the limits.
func encodePeers(peers []peer.AddrInfo) []byte {
	out := []byte(peersMagic)
	for _, p := range peers[:min(len(peers), keptMax)] {
		for _, a := range Texts(peer.AddrInfo{ID: p.ID, Addrs: p.Addrs[:min(len(p.Addrs), keptAddrsMax)]}) {
			out = append(append(out, a...), '\n')
		}
	}
	return out
}

// decodePeers reads what encodePeers wrote; anything else is content.ErrCorrupt.
func decodePeers(b []byte) ([]peer.AddrInfo, error) {
	text, ok := strings.CutPrefix(string(b), peersMagic)
	if !ok || text != "" && !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("peers file: %w", content.ErrCorrupt)
	}
	var out []peer.AddrInfo
	for line := range strings.Lines(text) {
		info, err := ParseAddr(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("peers file: %w: %w", content.ErrCorrupt, err)
		}
		out = AddPeer(out, info)
	}
	return out, nil
}

// AddPeer appends a peer, or its addresses to those of the same peer.
func AddPeer(peers []peer.AddrInfo, p peer.AddrInfo) []peer.AddrInfo {
	i := slices.IndexFunc(peers, func(q peer.AddrInfo) bool { return q.ID == p.ID })
	if i < 0 {
		return append(peers, p)
	}
	peers[i].Addrs = append(peers[i].Addrs, p.Addrs...)
	return peers
}

func loadPeers(path string) ([]peer.AddrInfo, error) {
	b, err := os.ReadFile(path)
	if path == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodePeers(b)
}
