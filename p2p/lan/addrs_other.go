//go:build !linux

package lan

import (
	"net"
	"net/netip"
)

func prefixes(all []net.Interface) (map[int][]netip.Prefix, error) {
	out := map[int][]netip.Prefix{}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it may just have gone
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out[i.Index] = append(out[i.Index], p)
			}
		}
	}
	return out, nil
}
