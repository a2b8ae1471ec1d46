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

// Addresses returns those of the interfaces that are up, without loopback's and links'.
func Addresses() ([]Address, error) {
	all, err := net.Interfaces()
	var held map[int][]netip.Prefix
	if err == nil {
		held, err = prefixes(all)
	}
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	ways := waysOut("/proc/net")
	var out, ends []Address
	for _, i := range all {
		if len(held[i.Index]) == 0 || i.Flags&net.FlagUp == 0 {
			continue
		}
		dir := filepath.Join("/sys/class/net", i.Name)
		inner, pair := isInner(dir), isPair(dir) && !slices.Contains(ways, i.Name)
		for _, p := range held[i.Index] {
			switch {
			case !p.Addr().IsGlobalUnicast():
			case pair && p.Addr().BitLen()-p.Bits() <= pairBits:
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

// Interface returns the one that has an address; content.ErrNotFound when none does.
func Interface(ip netip.Addr) (*net.Interface, error) {
	own, err := Addresses()
	if err != nil {
		return nil, err
	}
	for _, a := range own {
		if a.Addr() == ip {
			return net.InterfaceByName(a.Interface)
		}
	}
	return nil, fmt.Errorf("%s: %w: it is no address of this host", ip, content.ErrNotFound)
}

// pairBits is the size of a subnet with room for the two ends of a wire, as sandboxes and
// machines of this host are given.
const pairBits = 2

// isPair reports whether an interface, by its folder of Linux's sysfs, is one end of a
// wire within this host: of a pair, or of a machine's TAP device.
func isPair(dir string) bool {
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

// Has reports whether ip is one of the addresses, of inner ones or of the others.
func Has(own []Address, ip netip.Addr, inner bool) bool {
	return slices.ContainsFunc(own, func(a Address) bool { return a.Inner == inner && a.Addr() == ip.Unmap() })
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
