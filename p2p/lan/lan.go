// Package lan says at which addresses of this host others may reach it. Nothing is
// guessed: where several fit, whoever runs the host has to say which.
package lan

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

// Address is one of this host, with its subnet.
type Address struct {
	netip.Prefix
	Interface string
	// Inner is that of a bridge which only containers and machines of this host are
	// behind, as docker0, or of a wire to one of them: other hosts have the same, and
	// reach themselves there.
	Inner bool
}

// wiresMax is how many interfaces a host has at most that is asked for the addresses of
// those which are ends of wires: each question takes as long as there are addresses, and
// who has more has them for sandboxes.
const wiresMax = 64

// Addresses returns those of the interfaces that are up, without loopback's and links',
// and wires' of a host with many.
func Addresses() ([]Address, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	ways := waysOut("/proc/net")
	var out, ends []Address
	for _, i := range all {
		dir := filepath.Join("/sys/class/net", i.Name)
		inner, wire := isInner(dir), isWire(dir) && !slices.Contains(ways, i.Name)
		if i.Flags&net.FlagUp == 0 || wire && len(all) > wiresMax {
			continue
		}
		addrs, _ := i.Addrs() // it may just have gone
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			switch {
			case err != nil || !p.Addr().IsGlobalUnicast():
			case wire && p.Addr().BitLen()-p.Bits() <= wireBits:
				ends = append(ends, Address{p, i.Name, true})
			default:
				out = append(out, Address{p, i.Name, inner})
			}
		}
	}
	if !slices.ContainsFunc(out, func(a Address) bool { return !a.Inner }) { // then they lead outside
		for i := range ends {
			ends[i].Inner = false
		}
	}
	return append(out, ends...), nil
}

// Held returns all addresses of this host, those of interfaces that are down too, which
// keep their connections.
func Held() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

// wireBits is the size of a subnet with room for the two ends of a wire, as sandboxes and
// machines of this host are given.
const wireBits = 2

// isWire reports whether an interface, by its folder of Linux's sysfs, is one end of a
// wire within this host: of a pair, or of a machine's TAP device.
func isWire(dir string) bool {
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(b))
	}
	if flags, err := strconv.ParseUint(read("tun_flags"), 0, 32); err == nil {
		const tap = 2 // IFF_TAP; the others are tunnels
		return flags&tap != 0
	}
	_, err := os.Stat(filepath.Join(dir, "device"))
	const ethernet = "1"
	return err != nil && read("type") == ethernet && read("iflink") != read("ifindex") && !strings.Contains(read("uevent"), "DEVTYPE=")
}

// waysOut returns the interfaces that have a default route, by Linux's folder of routes.
func waysOut(proc string) (out []string) {
	for name, column := range map[string]int{"route": 0, "ipv6_route": 9} {
		b, _ := os.ReadFile(filepath.Join(proc, name))
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 9 && (column == 0 && f[1] == "00000000" && f[7] == "00000000" || column == 9 && strings.Trim(f[0]+f[1], "0") == "") {
				out = append(out, f[column])
			}
		}
	}
	return out
}

// isInner reports whether an interface, by its folder of Linux's sysfs, is a bridge
// without a port to the outside: a device, or what bundles or splits some.
func isInner(dir string) bool {
	if _, err := os.Stat(filepath.Join(dir, "bridge")); err != nil {
		return false
	}
	ports, _ := filepath.Glob(filepath.Join(dir, "brif", "*"))
	return !slices.ContainsFunc(ports, func(port string) bool {
		port = filepath.Join(filepath.Dir(dir), filepath.Base(port))
		_, err := os.Stat(filepath.Join(port, "device"))
		kind, _ := os.ReadFile(filepath.Join(port, "uevent"))
		return err == nil || strings.Contains(string(kind), "DEVTYPE=bond") || strings.Contains(string(kind), "DEVTYPE=vlan")
	})
}

// Has reports whether ip is one of the addresses that are not inner.
func Has(own []Address, ip netip.Addr) bool {
	return slices.ContainsFunc(own, func(a Address) bool { return !a.Inner && a.Addr() == ip.Unmap() })
}

// Beside reports whether ip is in the subnet of one that is not inner.
func Beside(own []Address, ip netip.Addr) bool {
	return slices.ContainsFunc(own, func(a Address) bool { return !a.Inner && a.Contains(ip.Unmap()) })
}

// Choose returns the address that neighbours are told of a socket that takes all of
// this host's: the one in the subnet of known neighbours, else its only one, of IPv4
// before IPv6 unless the socket is of one of them alone. None or several are
// content.ErrInvalid: who runs the host has to say.
func Choose(own []Address, bind netip.Addr, neighbours []netip.Addr) (netip.Addr, error) {
	own = slices.DeleteFunc(slices.Clone(own), func(a Address) bool { return a.Inner || bind.Is4() && !a.Addr().Is4() })
	fit := slices.DeleteFunc(slices.Clone(own), func(a Address) bool { return !slices.ContainsFunc(neighbours, a.Contains) })
	if len(fit) == 0 {
		fit = slices.DeleteFunc(slices.Clone(own), func(a Address) bool { return !a.Addr().Is4() })
	}
	if len(fit) == 0 {
		fit = own
	}
	if len(fit) == 1 {
		return fit[0].Addr(), nil
	}
	what := "none but those of loopback, and of bridges to its own containers"
	if len(fit) > 0 {
		var names []string
		for _, a := range fit {
			names = append(names, fmt.Sprintf("%s (%s)", a.Addr(), a.Interface))
		}
		what = strings.Join(names, ", ")
	}
	return netip.Addr{}, fmt.Errorf("this host's address can't be told: %w: it has %s", content.ErrInvalid, what)
}
