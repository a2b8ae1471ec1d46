package farm

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/lan"
)

const (
	// placeCheck is how often a member looks whether its host still has the address that
	// it gossips at, and placeMissed in how many looks it has to be missing: what is
	// plugged out and in again does not move.
	placeCheck  = 2 * time.Second
	placeMissed = 2
)

// Start begins to gossip; an address in use is content.ErrUnavailable. Run ends it.
func (f *Farm) Start() error {
	var at netip.AddrPort
	if f.cfg.Transport == nil {
		var err error
		if at, err = Place(f.cfg.Bind, f.cfg.Join); err != nil {
			return err
		}
	}
	list, err := f.gossip(at, 0)
	if err != nil {
		return err
	}
	f.list.Store(list)
	if err := f.say(0); err != nil {
		f.cfg.Log.Debug("gossip: nobody has heard yet that this member is here", "err", err)
	}
	return nil
}

// gossip begins to at an address, which that of Config's Transport goes before: for the
// turn of that number.
func (f *Farm) gossip(at netip.AddrPort, turn int) (*memberlist.Memberlist, error) {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.Keyring = f.self.ID.String(), label(f.name), f.ring
	x := face{f, turn}
	c.Delegate, c.Events, c.Alive = x, x, x
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = probeInterval, probeTimeout, suspicionMult
	c.PushPullInterval, c.TCPTimeout, c.DeadNodeReclaimTime = syncInterval, tcpTimeout, reclaimAfter
	c.RetransmitMult = retransmitMult
	c.EnableCompression = false // what fits a packet is compressed in 70 KiB of new memory, for each
	c.Logger = log.New(complaints{f.cfg.Log, f.metrics.complaints, rate.NewLimiter(rate.Every(complaintEvery), complaintBurst)}, "", 0)
	if c.Transport = f.cfg.Transport; c.Transport == nil {
		c.BindAddr, c.BindPort, c.AdvertisePort = at.Addr().String(), int(at.Port()), int(at.Port())
	}
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("farm %s on %s: %w: %w", f.name, f.cfg.Bind, content.ErrUnavailable, err)
	}
	return list, nil
}

// Place returns where a member gossips, and what its neighbours are told: Config's Bind,
// with the address of this host on the farm's LAN in the place of one that stands for
// all. Where it can't be told which that is, and for what is no address of this host,
// the error is content.ErrInvalid and says what to give.
func Place(bind string, neighbours []string) (netip.AddrPort, error) {
	a, err := net.ResolveTCPAddr("tcp", bind)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("--farm-bind %q: %w: want HOST:PORT of this machine: %w", bind, content.ErrInvalid, err)
	}
	at := a.AddrPort()
	if at.Addr().IsValid() && !at.Addr().IsUnspecified() {
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
	}
	own, err := lan.Addresses()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var near []netip.Addr
	for _, text := range neighbours {
		if n, err := netip.ParseAddrPort(text); err == nil {
			near = append(near, n.Addr())
		}
	}
	ip, err := lan.Choose(own, at.Addr().Unmap(), near)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("--farm-bind %q: %w; give the one that the farm's neighbours reach, as --farm-bind 10.0.0.5:%d", bind, err, at.Port())
	}
	return netip.AddrPortFrom(ip, at.Port()), nil
}

// keepPlaced looks for neighbours on the LAN, and gossips at another address when the host
// has lost the one of before, until ctx ends.
func (f *Farm) keepPlaced(ctx context.Context) {
	if f.cfg.Transport != nil {
		return
	}
	tick := time.Tick(placeCheck)
	var look *finder
	defer func() { look.close() }()
	for missed := 0; ; {
		at, err := netip.ParseAddrPort(f.Address())
		held, unknown := lan.Held()
		switch {
		case err != nil || unknown != nil || at.Addr().IsLoopback():
		case slices.Contains(held, at.Addr()):
			missed = 0
			look = f.find(look, at.Addr())
		default:
			if missed++; missed >= placeMissed {
				f.move(at)
			}
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return
		}
	}
}

// move goes on to gossip where the host is now, if that can be told and is elsewhere. It
// has to find its neighbours anew, who don't take it for back before they have missed it.
func (f *Farm) move(from netip.AddrPort) {
	near := slices.Clone(f.cfg.Join)
	for _, m := range f.Members() {
		near = append(near, m.Address)
	}
	to, err := Place(f.cfg.Bind, near)
	if err != nil || to.Addr() == from.Addr() {
		f.cfg.Log.Debug("gossip: the host has lost its address, and has no other", "address", from, "err", err)
		return
	}
	list, err := f.gossip(to, f.turn+1)
	if err != nil {
		f.cfg.Log.Warn("gossip: the host has another address, which can't be used", "address", to, "err", err)
		return
	}
	f.cfg.Log.Info("gossip: the host has another address", "from", from, "to", to)
	f.mu.Lock()
	f.turn++                      // what the old one says from now on counts no more
	for id, k := range f.roster { // all others, as who gossips anew knows nobody
		if at := k.at; at != "" {
			f.roster.gone(id)
			f.lose(Absence{ID: id, Address: at, Since: f.cfg.Now()})
		}
	}
	f.publish()
	f.mu.Unlock()
	old := f.list.Swap(list)
	if err := errors.Join(old.Shutdown(), f.say(0)); err != nil {
		f.cfg.Log.Debug("gossip: nobody has heard yet where this member is", "err", err)
	}
	f.rouse()
}

// rouse has neighbours joined at once.
func (f *Farm) rouse() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Tell has the others hear that this member's swarm is at other addresses.
func (f *Farm) Tell(addrs []ma.Multiaddr) error {
	f.mu.Lock()
	same := slices.EqualFunc(f.self.Addrs, addrs, ma.Multiaddr.Equal)
	if !same {
		f.self.Addrs = slices.Clone(addrs)
	}
	f.mu.Unlock()
	if same {
		return nil
	}
	return f.say(0)
}
