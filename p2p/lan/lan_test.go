package lan

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/origin/content"
)

func address(text, name string, inner bool) Address {
	return Address{netip.MustParsePrefix(text), name, inner}
}

// TestChoice of what the neighbours are told when a socket takes all addresses.
func TestChoice(t *testing.T) {
	eth, docker := address("10.0.0.5/24", "eth0", false), address("172.17.0.1/16", "docker0", true)
	other, six := address("192.168.1.7/24", "eth1", false), address("2001:db8::5/64", "eth0", false)
	all4, all6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, x := range []struct {
		name string
		own  []Address
		bind netip.Addr
		near string
		want string // "" is ErrInvalid
	}{
		{"the LAN's beside a bridge", []Address{docker, eth}, all4, "", "10.0.0.5"},
		{"no host in the flag", []Address{docker, eth, six}, netip.Addr{}, "", "10.0.0.5"},
		{"::", []Address{docker, eth, six}, all6, "", "10.0.0.5"},
		{"IPv6 alone", []Address{docker, six}, all6, "", "2001:db8::5"},
		{"IPv6 alone, bound to IPv4", []Address{docker, six}, all4, "", ""},
		{"several", []Address{eth, other}, all4, "", ""},
		{"several, and a neighbour's subnet", []Address{eth, other}, all4, "192.168.1.1", "192.168.1.7"},
		{"several, and a neighbour elsewhere", []Address{eth, other}, all4, "192.0.2.1", ""},
		{"a bridge alone", []Address{docker}, all4, "172.17.0.9", ""},
		{"none", nil, netip.Addr{}, "", ""},
	} {
		var near []netip.Addr
		if x.near != "" {
			near = append(near, netip.MustParseAddr(x.near))
		}
		got, err := Choose(x.own, x.bind, near)
		if x.want == "" {
			if !errors.Is(err, content.ErrInvalid) {
				t.Errorf("%s: %s, %v", x.name, got, err)
			}
		} else if err != nil || got.String() != x.want {
			t.Errorf("%s: %s, %v, want %s", x.name, got, err, x.want)
		}
	}
}

// TestInnerBridges are those without a port to the outside.
func TestInnerBridges(t *testing.T) {
	sys := t.TempDir()
	file := func(path, text string) {
		t.Helper()
		path = filepath.Join(sys, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("eth0/device/vendor", "")
	file("bond0/uevent", "DEVTYPE=bond\n")
	file("veth1/uevent", "INTERFACE=veth1\n")
	for bridge, port := range map[string]string{"docker0": "veth1", "virbr0": "", "br0": "eth0", "br1": "bond0"} {
		file(bridge+"/bridge/bridge_id", "")
		if port != "" {
			file(bridge+"/brif/"+port+"/port_id", "")
		}
	}
	for name, want := range map[string]bool{"docker0": true, "virbr0": true, "br0": false, "br1": false, "eth0": false, "veth1": false, "gone": false} {
		if got := isInner(filepath.Join(sys, name)); got != want {
			t.Errorf("%s is inner: %v", name, got)
		}
	}
}
