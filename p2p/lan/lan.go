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
	"strings"

	"github.com/grangemesh/grange/origin/content"
)

// Address is one of this host, with its subnet.
type Address struct {
	netip.Prefix
	Interface string
	// Inner is that of a bridge which only containers and machines of this host are
	// behind, as docker0: other hosts have the same, and reach themselves there.
	Inner bool
}

// Addresses returns those of the interfaces that are up, without loopback's and links'.
func Addresses() ([]Address, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("addresses of this host: %w", err)
	}
	var out []Address
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 {
			continue // it may just have gone
		}
		inner := isInner(filepath.Join("/sys/class/net", i.Name))
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().IsGlobalUnicast() {
				out = append(out, Address{p, i.Name, inner})
			}
		}
	}
	return out, nil
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
