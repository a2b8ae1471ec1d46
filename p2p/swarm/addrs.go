package swarm

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2pswarm "github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/lan"
)

// rankDials has the addresses in this host's own subnets tried first, then the others;
// of each TCP before QUIC, which costs three times the CPU a byte, and a relay last. Who is
// behind a NAT tries the world's by QUIC first: over that it learns where it is seen from
// outside, which holes are punched at.
func (s *Swarm) rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	return rankBy(addrs, s.places.near, s.behindNAT)
}

// behindNAT reports whether an address is of the world outside, which this host has no
// address of, and is dialled from one that answers.
func (s *Swarm) behindNAT(a ma.Multiaddr) bool {
	ip, ok := ipOf(a)
	return ok && manet.IsPublicAddr(a) && s.places.hides(ip) &&
		slices.ContainsFunc(s.listen, func(l ma.Multiaddr) bool { return transportOf(l) == viaQUIC })
}

func rankBy(addrs []ma.Multiaddr, near, behindNAT func(ma.Multiaddr) bool) []network.AddrDelay {
	const punched = 1                             // between TCP in own subnets, and in others
	var groups [4 * (viaRelay + 1)][]ma.Multiaddr // two of each transport, and room between
	for _, a := range addrs {
		group := 4*transportOf(a) + 2
		switch {
		case near(a):
			group -= 2
		case group == 4*viaQUIC+2 && behindNAT(a):
			group = punched
		}
		groups[group] = append(groups[group], a)
	}
	var out []network.AddrDelay
	delay := time.Duration(0)
	for i, group := range groups {
		for _, d := range libp2pswarm.DefaultDialRanker(group) {
			out = append(out, network.AddrDelay{Addr: d.Addr, Delay: delay + d.Delay})
		}
		switch {
		case len(group) == 0:
		case i == punched:
			delay += punchDelay
		case i%4 == 0: // beside it are more of the same transport
			delay += nearDelay
		default:
			delay += fallbackDelay
		}
	}
	return out
}

func ipOf(a ma.Multiaddr) (netip.Addr, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	out, ok := netip.AddrFromSlice(ip)
	return out.Unmap(), ok
}

// addrsMax bounds the addresses of a member that the DHT tells of, and believes.
const addrsMax = 16

func someAddrs(addrs []ma.Multiaddr) []ma.Multiaddr { return addrs[:min(len(addrs), addrsMax)] }

// shown returns what others are told of the addresses listened on: not those of loopback
// and of bridges to own containers, where others reach themselves, if there are others.
func shown(listening []ma.Multiaddr, own []lan.Address, held []netip.Addr) []ma.Multiaddr {
	var out, loopback []ma.Multiaddr
	for _, a := range listening {
		ip, ok := ipOf(a)
		switch {
		case ok && ip.IsLoopback():
			loopback = append(loopback, a)
		case !ok || !ip.IsUnspecified() && (lan.Has(own, ip) || !slices.Contains(held, ip)):
			out = append(out, a)
		}
	}
	switch {
	case len(out) > 0:
		return out
	case len(loopback) > 0:
		return loopback
	}
	return listening
}

// advertised is what others are told: this member's own addresses, and Announce. What the
// library says of interfaces is up to a minute old: of that only the world's counts, which
// routers and peers have told it of, and places at relays.
func (s *Swarm) advertised(listening []ma.Multiaddr) []ma.Multiaddr {
	held, err := s.places.look(time.Now())
	if err != nil {
		s.cfg.Log.Warn("which addresses belong to bridges is not known", "err", err)
	}
	select {
	case <-s.built:
		var now []ma.Multiaddr
		for _, ip := range held {
			if a, err := manet.FromIP(ip.AsSlice()); err == nil && !ip.IsLinkLocalUnicast() {
				now = append(now, a)
			}
		}
		open, err := manet.ResolveUnspecifiedAddresses(s.host.Network().ListenAddresses(), now)
		if err != nil {
			break
		}
		open = slices.DeleteFunc(open, func(a ma.Multiaddr) bool { return transportOf(a) == viaRelay })
		outer := slices.DeleteFunc(slices.Clone(listening), func(a ma.Multiaddr) bool { return transportOf(a) != viaRelay && !manet.IsPublicAddr(a) })
		listening = ma.Unique(append(open, outer...))
	default: // before it listens
	}
	var own []lan.Address
	if p := s.places.own.Load(); p != nil {
		own = *p
	}
	return append(shown(listening, own, held), s.outside...)
}

// CheckAddrs reads Listen and Announce; a wrong one is content.ErrInvalid, by its flag.
func CheckAddrs(listen, announce []string) (listening, announced []ma.Multiaddr, err error) {
	for _, text := range listen {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return nil, nil, fmt.Errorf("--listen %q: %w: %w; write it as /ip4/10.0.0.5/tcp/4001", text, content.ErrInvalid, err)
		}
		listening = append(listening, a)
	}
	for _, text := range announce {
		a, err := ma.NewMultiaddr(text)
		var proto, at string
		if err == nil {
			proto, at, err = manet.DialArgs(a)
		}
		reached := strings.HasPrefix(proto, "tcp") || strings.HasPrefix(proto, "udp") && strings.Contains(text, "/quic")
		if err == nil && (!reached || strings.HasSuffix(at, ":0") || manet.IsIPUnspecified(a) || strings.Contains(text, "/p2p/")) {
			err = errors.New("it stands for one address, and ends with a port")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("--announce %q: %w: %w; write it as /ip4/203.0.113.7/tcp/4001 or /dns4/farm.example.org/tcp/4001", text, content.ErrInvalid, err)
		}
		announced = append(announced, a)
	}
	return listening, announced, nil
}

// Texts returns the full multiaddrs of a peer, each of which ParseAddr reads.
func Texts(p peer.AddrInfo) (out []string) {
	for _, a := range p.Addrs {
		out = append(out, a.String()+"/p2p/"+p.ID.String())
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
