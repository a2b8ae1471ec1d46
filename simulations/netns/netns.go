// Package netns makes several hosts with real addresses on one machine: Linux
// network namespaces on the bridges of a router that forwards between LANs. It
// needs root and iproute2; nothing it makes is reachable from outside.
package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

// hostsMax bounds the hosts of one LAN: a /24 less the router and the ends.
const hostsMax = 250

// Network is a router and its LANs. Close removes all of it, also what a failed
// call has left. It is built by one goroutine; the hosts may be used by many.
type Network struct {
	name  string
	lans  map[string]*lan
	hosts int
	made  []string // namespaces
	lines []*shaper
}

type lan struct {
	bridge string
	prefix netip.Prefix
	used   int
}

// Host is one namespace with an address.
type Host struct {
	namespace     string
	addr, gateway netip.Addr
	line          *shaper // of a far one
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
		err = n.in(ctx, n.router(), "sysctl", "-qw", "net.ipv4.ip_forward=1")
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
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
	return n.host(ctx, lanName, func(h *Host, port string) error {
		return n.in(ctx, h.namespace, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", n.router())
	})
}

// host adds a host whose eth0 connect makes, with a port of the router.
func (n *Network) host(ctx context.Context, lanName string, connect func(h *Host, port string) error) (*Host, error) {
	l, err := n.lan(ctx, lanName)
	if err != nil {
		return nil, err
	}
	if l.used == hostsMax {
		return nil, fmt.Errorf("LAN %s has %d hosts; a /24 takes no more", lanName, l.used)
	}
	l.used++
	n.hosts++
	addr := l.prefix.Addr().As4()
	addr[3] = byte(1 + l.used)
	h := &Host{namespace: fmt.Sprintf("%s-%d", n.name, n.hosts), addr: netip.AddrFrom4(addr), gateway: l.gateway()}
	if err := n.namespace(ctx, h.namespace); err != nil {
		return nil, err
	}
	port := fmt.Sprintf("p%d", n.hosts)
	if err := connect(h, port); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"ip", "addr", "add", h.addr.String() + "/24", "dev", "eth0"},
		{"ip", "link", "set", "eth0", "up"},
		{"ip", "route", "add", "default", "via", h.gateway.String()},
	} {
		if err := n.in(ctx, h.namespace, args...); err != nil {
			return nil, err
		}
	}
	if err := n.in(ctx, n.router(), "ip", "link", "set", port, "master", l.bridge, "up"); err != nil {
		return nil, err
	}
	return h, nil
}

func (l *lan) gateway() netip.Addr { return l.prefix.Addr().Next() }

func (n *Network) lan(ctx context.Context, name string) (*lan, error) {
	if l := n.lans[name]; l != nil {
		return l, nil
	}
	number := len(n.lans) + 1
	l := &lan{bridge: fmt.Sprintf("br%d", number), prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(number), 0}), 24)}
	mac := fmt.Sprintf("02:4d:00:00:00:%02x", number) // its own: it would take that of a host, another with each new one
	for _, args := range [][]string{
		{"ip", "link", "add", l.bridge, "address", mac, "type", "bridge"},
		{"ip", "addr", "add", l.gateway().String() + "/24", "dev", l.bridge},
		{"ip", "link", "set", l.bridge, "up"},
	} {
		if err := n.in(ctx, n.router(), args...); err != nil {
			return nil, err
		}
	}
	n.lans[name] = l
	return l, nil
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
	return ip(ctx, "netns", "exec", h.namespace, "ip", "route", "replace", "default", "via", h.gateway.String()) // it went with the link
}

func (h *Host) link(ctx context.Context, state string) error {
	return ip(ctx, "netns", "exec", h.namespace, "ip", "link", "set", "eth0", state)
}

// Command returns a command that runs inside the host's network.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "/usr/sbin/ip", append([]string{"netns", "exec", h.namespace, name}, args...)...)
}
