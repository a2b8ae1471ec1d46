// Package farm tells who is here: the members of one farm, on one LAN, found by
// encrypted gossip. It says who is alive, never who leads: that is the planner's
// to decide. A member that is only suspected to be dead is alive still.
package farm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// probeInterval and probeTimeout find a dead member within ten seconds, and
	// leave a loaded machine of two cores the time to answer. suspicionMult is how
	// long a suspect has to speak up, in intervals, times the logarithm of the
	// members to the base of ten: a crash was seen in simulations after five
	// seconds by 10 members, after seven to nine by 100 to 200. A host that stands
	// still for more than a second may be taken for dead too, and is back within
	// two rejoinIntervals; to wait for it would be to wait for the dead.
	probeInterval = 850 * time.Millisecond
	probeTimeout  = 600 * time.Millisecond
	suspicionMult = 3
	// syncInterval is how often a member exchanges all that it knows with another,
	// so that who missed some news learns it; gossip makes it four times as long
	// among 200 members.
	syncInterval = 10 * time.Second
	// reclaimAfter is how soon after its death a member may come back with another
	// address. Gossip would by default insist on the old one.
	reclaimAfter = time.Second
	// leaveTimeout bounds how long the others are told of a leave.
	leaveTimeout = 2 * time.Second
	// labelMax is the longest name of a farm that labels its gossip as it is.
	labelMax = 32
)

// Config is what a Farm is built from.
type Config struct {
	// Name of the farm; farms of other names never merge with this one.
	Name string
	// Node names this member: its peer ID.
	Node string
	// Bind is HOST:PORT to gossip on; port 0 takes a free one, no host takes all.
	Bind string
	// Join are HOST:PORT of some neighbours, who may start later.
	Join []string
	// Key encrypts the gossip; 32 bytes that the members share, not all zero.
	Key [32]byte
	// Addrs are the multiaddrs that neighbours reach this member's swarm at, the
	// best first: gossip has room for about ten.
	Addrs []string
	// LinkMbits is the speed of this member's link, as a hint; 0 is unknown.
	LinkMbits uint32
	// Admit reports whether a member is to be listed: false once its certificate
	// was seen to be none. It is asked again at Recheck. It must neither block nor
	// call the Farm; nil admits all.
	Admit func(node string) bool
	// Transport replaces the network, in simulations; nil uses Bind.
	Transport memberlist.Transport
	// Log may be nil.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if err := content.CheckName(c.Name); err != nil {
		return c, fmt.Errorf("farm: %w", err)
	}
	if c.Node == "" {
		return c, fmt.Errorf("farm %s: %w: a member needs a name", c.Name, content.ErrInvalid)
	}
	if c.Key == ([32]byte{}) {
		return c, fmt.Errorf("farm %s: %w: no gossip key; the tokens of role node have it", c.Name, content.ErrInvalid)
	}
	if c.Admit == nil {
		c.Admit = func(string) bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Member is one live neighbour, or this member itself.
type Member struct {
	// Node is its peer ID.
	Node string
	// Addrs are its swarm's multiaddrs.
	Addrs []string
	// Address is its gossip HOST:PORT.
	Address string
	// LinkMbits is the speed of its link, as it says; 0 is unknown.
	LinkMbits uint32
}

// Farm is this member's view of its farm. Use: New, Start, Run.
type Farm struct {
	cfg     Config
	metrics metrics
	meta    []byte
	list    *memberlist.Memberlist

	mu       sync.Mutex           // guards what follows
	all      map[string]Member    // by node, whether admitted or not
	members  []Member             // those admitted, sorted; never changed in place
	lost     map[string]time.Time // since when, by gossip address
	watchers map[chan struct{}]bool
}

// New checks the configuration.
func New(cfg Config) (*Farm, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	f := &Farm{cfg: cfg, metrics: newMetrics(), all: map[string]Member{}, lost: map[string]time.Time{}, watchers: map[chan struct{}]bool{}}
	if f.meta, err = encodeMeta(cfg.Node, cfg.Addrs, cfg.LinkMbits); err != nil {
		return nil, fmt.Errorf("farm %s: %w", cfg.Name, err)
	}
	return f, nil
}

// Start begins to gossip; an address in use is found here, as
// content.ErrUnavailable. Run ends it.
func (f *Farm) Start() error {
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.SecretKey = f.cfg.Node, label(f.cfg.Name), f.cfg.Key[:]
	c.Delegate, c.Events = delegate{f}, events{f}
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = probeInterval, probeTimeout, suspicionMult
	c.PushPullInterval, c.TCPTimeout, c.DeadNodeReclaimTime = syncInterval, tcpTimeout, reclaimAfter
	c.Logger = log.New(newComplaints(f.cfg.Log, f.metrics.complaints), "", 0)
	c.Transport = f.cfg.Transport
	if c.Transport == nil {
		ip, port, err := resolveBind(f.cfg.Bind)
		if err != nil {
			return err
		}
		c.BindAddr, c.BindPort, c.AdvertisePort = ip, port, port
	}
	list, err := memberlist.Create(c)
	if err != nil {
		return fmt.Errorf("farm %s on %s: %w: %w", f.cfg.Name, f.cfg.Bind, content.ErrUnavailable, err)
	}
	f.list = list
	return nil
}

// label keeps farms apart; a long name is shortened to its hash.
func label(name string) string {
	if len(name) <= labelMax {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:labelMax/2])
}

// resolveBind reads HOST:PORT; no host is all addresses.
func resolveBind(bind string) (ip string, port int, err error) {
	a, err := net.ResolveTCPAddr("tcp", bind)
	if err != nil {
		return "", 0, fmt.Errorf("--farm-bind %q: %w: want HOST:PORT of this machine: %w", bind, content.ErrInvalid, err)
	}
	if len(a.IP) == 0 {
		return "0.0.0.0", a.Port, nil
	}
	return a.IP.String(), a.Port, nil
}

// Run looks for neighbours until ctx ends; then it says good-bye and stops.
func (f *Farm) Run(ctx context.Context) error {
	f.keepJoined(ctx)
	return errors.Join(f.list.Leave(leaveTimeout), f.list.Shutdown())
}

// Address is the HOST:PORT that a neighbour's Join takes.
func (f *Farm) Address() string { return f.list.LocalNode().Address() }

// Members returns the live members, this one included, sorted by Node. The slice
// must not be changed.
func (f *Farm) Members() []Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members
}

// Watch returns a channel that has an element at first, and then whenever the
// members have changed since it was last received from. It is never closed; after
// ctx ends nothing is sent.
func (f *Farm) Watch(ctx context.Context) <-chan struct{} {
	ch := make(chan struct{}, 1)
	ch <- struct{}{}
	f.mu.Lock()
	f.watchers[ch] = true
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, ch)
	})
	return ch
}

// Recheck asks Config.Admit again about every member.
func (f *Farm) Recheck() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish()
}

// publish makes the list anew. Called with mu.
func (f *Farm) publish() {
	var next []Member
	for node, m := range f.all {
		if node == f.cfg.Node || f.cfg.Admit(node) {
			next = append(next, m)
		}
	}
	slices.SortFunc(next, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	f.members = next
	for ch := range f.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// events and delegate are the faces that memberlist wants. It calls them one at a
// time and with its own lock held, so they don't call it.
type events struct{ f *Farm }

// NotifyJoin implements memberlist.EventDelegate.
func (e events) NotifyJoin(n *memberlist.Node) {
	e.f.metrics.joined.Inc()
	e.NotifyUpdate(n)
}

// NotifyUpdate implements memberlist.EventDelegate.
func (e events) NotifyUpdate(n *memberlist.Node) {
	m := Member{Node: n.Name, Address: n.Address()}
	var err error
	if m.Addrs, m.LinkMbits, err = decodeMeta(n.Name, n.Meta); err != nil { // it can't be asked, which its requests show
		e.f.cfg.Log.Warn("a member says nothing of itself that is understood", "err", err)
	}
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	delete(e.f.lost, m.Address)
	e.f.all[m.Node] = m
	e.f.publish()
}

// NotifyLeave implements memberlist.EventDelegate.
func (e events) NotifyLeave(n *memberlist.Node) {
	e.f.metrics.lost.Inc()
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	if n.Name != e.f.cfg.Node {
		e.f.lose(e.f.all[n.Name])
	}
	delete(e.f.all, n.Name)
	e.f.publish()
}

type delegate struct{ f *Farm }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(int) []byte { return d.f.meta }

// NotifyMsg implements memberlist.Delegate.
func (delegate) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (delegate) MergeRemoteState([]byte, bool) {}
