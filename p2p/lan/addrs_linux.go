package lan

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// prefixes returns the addresses of some interfaces, by their index. It asks the kernel
// once, where the standard library would for each of what may be thousands.
func prefixes([]net.Interface) (map[int][]netip.Prefix, error) {
	table, err := syscall.NetlinkRIB(syscall.RTM_GETADDR, syscall.AF_UNSPEC)
	if err != nil {
		return nil, os.NewSyscallError("netlink", err)
	}
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil, os.NewSyscallError("netlink", err)
	}
	out := map[int][]netip.Prefix{}
	for _, m := range messages {
		if m.Header.Type != syscall.RTM_NEWADDR || len(m.Data) < syscall.SizeofIfAddrmsg {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, os.NewSyscallError("netlink", err)
		}
		var own netip.Addr // of a pair of ends the near one, which is given second
		for _, a := range attrs {
			if ip, ok := netip.AddrFromSlice(a.Value); ok && (a.Attr.Type == syscall.IFA_LOCAL || a.Attr.Type == syscall.IFA_ADDRESS && !own.IsValid()) {
				own = ip
			}
		}
		index := int(binary.NativeEndian.Uint32(m.Data[4:]))
		if p := netip.PrefixFrom(own, int(m.Data[1])); p.IsValid() {
			out[index] = append(out[index], p)
		}
	}
	return out, nil
}
