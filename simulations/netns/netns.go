// Package netns makes several hosts with real addresses on one machine: Linux
// network namespaces on the bridges of a router that forwards between LANs. It
// needs root, iproute2 and nftables; nothing it makes is reachable from outside.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// hostsMax bounds the hosts of one LAN: a /24 less the router and the ends.
const hostsMax = 250

// Network is a router and its LANs, some of them behind others. Close removes all of it, also what a failed
// call has left. It is built by one goroutine; the hosts may be used by many.
type Network struct {
	name  string
	lans  map[string]*lan
	hosts int
	made  []string // namespaces
	lines []*shaper
}

type lan struct {
	router string // the namespace that its bridge is in
	bridge string
	prefix netip.Prefix
	used   int
}

// Host is one namespace with an address.
type Host struct {
	namespace string
	lan       *lan
	addr      netip.Addr
	line      *shaper // of a far one
	settled   int     // the process whose mounts all see; 0 for none
}

// New makes a network without hosts. The name, a few letters, begins the names
// of its namespaces; of several networks each has others.
func New(ctx context.Context, name string) (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("network namespaces: %w: they need root", fs.ErrPermission)
	}
	n := &Network{name: fmt.Sprintf("%s%d-%08x", name, os.Getpid(), rand.Uint32()), lans: map[string]*lan{}}
	err := n.namespace(ctx, n.router())
	if err == nil {
		err = n.forward(ctx, n.router())
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Network) forward(ctx context.Context, namespace string) error {
	return n.in(ctx, namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
}

func (n *Network) router() string { return n.name + "-router" }

func (n *Network) namespace(ctx context.Context, name string) error {
	if err := ip(ctx, "netns", "add", name); err != nil {
		return err
	}
	n.made = append(n.made, name)
	return n.in(ctx, name, "ip", "link", "set", "lo", "up")
}

// Host adds a host to a LAN, which is made with its first host: LANs are
// 10.77.1.0/24, 10.77.2.0/24 and so on.
func (n *Network) Host(ctx context.Context, lanName string) (*Host, error) {
	return n.host(ctx, lanName, n.wire)
}

// wire connects a host's eth0 with a port of its router.
func (n *Network) wire(ctx context.Context, h *Host, port string) error {
	return n.in(ctx, h.namespace, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", h.lan.router)
}

// host adds a host whose eth0 connect makes, with a port of the router.
func (n *Network) host(ctx context.Context, lanName string, connect func(ctx context.Context, h *Host, port string) error) (*Host, error) {
	l := n.lans[lanName]
	if l == nil {
		var err error
		if l, err = n.lan(ctx, lanName, n.router(), private); err != nil {
			return nil, err
		}
	}
	n.hosts++
	h := &Host{namespace: fmt.Sprintf("%s-%d", n.name, n.hosts), lan: l}
	if err := n.namespace(ctx, h.namespace); err != nil {
		return nil, err
	}
	port := fmt.Sprintf("p%d", n.hosts)
	if err := connect(ctx, h, port); err != nil {
		return nil, err
	}
	if err := n.in(ctx, l.router, "ip", "link", "set", port, "master", l.bridge, "up"); err != nil {
		return nil, err
	}
	if err := h.link(ctx, "up"); err != nil {
		return nil, err
	}
	return h, h.Move(ctx)
}

// Move gives the host another address of its LAN in the place of the one that it has.
func (h *Host) Move(ctx context.Context) error {
	if h.lan.used == hostsMax {
		return fmt.Errorf("LAN %s has given %d addresses; a /24 takes no more", h.lan.prefix, h.lan.used)
	}
	h.lan.used++
	raw := h.lan.prefix.Addr().AsSlice()
	raw[len(raw)-1] = byte(1 + h.lan.used)
	next, _ := netip.AddrFromSlice(raw)
	at := func(a netip.Addr) string { return netip.PrefixFrom(a, h.lan.prefix.Bits()).String() }
	if h.addr.IsValid() {
		if err := h.ip(ctx, "addr", "del", at(h.addr), "dev", "eth0"); err != nil {
			return err
		}
	}
	if h.addr = next; next.Is6() { // it is its own at once
		if err := h.ip(ctx, "addr", "add", at(next), "dev", "eth0", "nodad"); err != nil {
			return err
		}
	} else if err := h.ip(ctx, "addr", "add", at(next), "dev", "eth0"); err != nil {
		return err
	}
	return h.route(ctx)
}

// route has the host reach other LANs through its router.
func (h *Host) route(ctx context.Context) error {
	return h.ip(ctx, "route", "replace", "default", "via", h.lan.gateway().String())
}

func (h *Host) ip(ctx context.Context, args ...string) error {
	return ip(ctx, append([]string{"netns", "exec", h.namespace, "ip"}, args...)...)
}

func (l *lan) gateway() netip.Addr { return l.prefix.Addr().Next() }

// private, public and sixth make the prefix of a LAN by its number: addresses of sites,
// such as the world takes for reachable, and of IPv6.
func private(number byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, number, 0}), 24)
}

func public(number byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 77, number, 0}), 24)
}

func sixth(number byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x77, 14: 0, 7: number}), 64)
}

// lan makes a LAN on a bridge of a router.
func (n *Network) lan(ctx context.Context, name, router string, prefix func(byte) netip.Prefix) (*lan, error) {
	number := len(n.lans) + 1
	l := &lan{router: router, bridge: fmt.Sprintf("br%d", number), prefix: prefix(byte(number))}
	mac := fmt.Sprintf("02:4d:00:00:00:%02x", number) // its own: it would take that of a host, another with each new one
	for _, args := range [][]string{
		{"ip", "link", "add", l.bridge, "address", mac, "type", "bridge", "mcast_snooping", "0"},
		{"ip", "link", "set", l.bridge, "up"},
		{"ip", "addr", "add", netip.PrefixFrom(l.gateway(), l.prefix.Bits()).String(), "dev", l.bridge},
	} {
		if err := n.in(ctx, router, args...); err != nil {
			return nil, err
		}
	}
	n.lans[name] = l
	return l, nil
}

// Public makes a LAN of addresses that the world takes for reachable from everywhere.
func (n *Network) Public(ctx context.Context, lanName string) error {
	_, err := n.lan(ctx, lanName, n.router(), public)
	return err
}

// IPv6 makes a LAN of IPv6 alone.
func (n *Network) IPv6(ctx context.Context, lanName string) error {
	_, err := n.lan(ctx, lanName, n.router(), sixth)
	return err
}

// NAT makes a LAN behind a router that is a host of another LAN and translates: those
// outside see its one address, and what they begin themselves it drops.
func (n *Network) NAT(ctx context.Context, lanName, outside string) (router *Host, err error) {
	if router, err = n.Host(ctx, outside); err != nil {
		return nil, err
	}
	if err = n.forward(ctx, router.namespace); err != nil {
		return nil, err
	}
	l, err := n.lan(ctx, lanName, router.namespace, private)
	if err != nil {
		return nil, err
	}
	return router, router.Filter(ctx, strings.ReplaceAll(`
table ip nat {
	chain out { type nat hook postrouting priority 100; oifname "eth0" masquerade; }
}
table ip filter {
	chain in { type filter hook input priority 0; policy drop; ct state established,related accept; iifname != "eth0" accept; }
	chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname "LAN" accept; ct status dnat accept; }
}
`, "LAN", l.bridge))
}

// BlockUDP has the host drop all UDP, its own and what it would forward, but for names'.
func (h *Host) BlockUDP(ctx context.Context) error {
	const drop = "hook HOOK priority -10; meta l4proto udp udp dport != 53 drop;"
	rules := "table inet noudp {\n"
	for _, hook := range []string{"input", "forward", "output"} {
		rules += "chain " + hook + "1 { type filter " + strings.ReplaceAll(drop, "HOOK", hook) + " }\n"
	}
	return h.Filter(ctx, rules+"}\n")
}

// Filter adds nftables' rules to the host.
func (h *Host) Filter(ctx context.Context, rules string) error {
	cmd := h.Command(ctx, "/usr/sbin/nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// Close removes the namespaces and with them all interfaces. Processes inside
// must have ended.
func (n *Network) Close() error {
	var errs []error
	for _, s := range n.lines {
		errs = append(errs, s.close())
	}
	n.lines = nil
	for _, name := range n.made {
		errs = append(errs, ip(context.Background(), "netns", "del", name))
	}
	n.made = nil
	return errors.Join(errs...)
}

func (n *Network) in(ctx context.Context, namespace string, args ...string) error {
	return ip(ctx, append([]string{"netns", "exec", namespace}, args...)...)
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "/usr/sbin/ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Addr is the host's address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Unplug cuts the host off: what is sent to it or by it is lost, and nobody is told.
func (h *Host) Unplug(ctx context.Context) error { return h.link(ctx, "down") }

// Plug undoes Unplug.
func (h *Host) Plug(ctx context.Context) error {
	if err := h.link(ctx, "up"); err != nil {
		return err
	}
	return h.route(ctx) // it went with the link
}

func (h *Host) link(ctx context.Context, state string) error {
	return h.ip(ctx, "link", "set", "eth0", state)
}

// Settle has all commands of the host see the same mounts from now on: what one of them mounts, the next finds. Without it each
// has its own. end takes them away.
func (h *Host) Settle(ctx context.Context) (end func() error, err error) {
	cmd := h.Command(context.WithoutCancel(ctx), "/bin/sh", "-c", "echo here; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	end = func() error { return errors.Join(in.Close(), cmd.Wait()) }
	if _, err := io.ReadFull(out, make([]byte, len("here\n"))); err != nil {
		return nil, errors.Join(err, end())
	}
	h.settled = cmd.Process.Pid
	return end, nil
}

// Command returns a command that runs inside the host's network.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	if h.settled != 0 {
		return exec.CommandContext(ctx, "/usr/bin/nsenter", append([]string{"--net", "--mount", "--target", strconv.Itoa(h.settled), name}, args...)...)
	}
	return exec.CommandContext(ctx, "/usr/sbin/ip", append([]string{"netns", "exec", h.namespace, name}, args...)...)
}
