// Package farm tells who is here: the members of one farm, on one LAN, found by
// encrypted gossip. It says who is alive, never who leads: that is the planner's
// to decide.
package farm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/memberlist"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// metaMax is what memberlist lets a member say of itself, in bytes.
	metaMax = memberlist.MetaMaxSize
	// probeInterval and probeTimeout find a dead member within ten seconds, and
	// leave a loaded machine of two cores the time to answer.
	probeInterval = time.Second
	probeTimeout  = 700 * time.Millisecond
	suspicionMult = 3
	// joinInterval is how often a member that is alone looks for the neighbours
	// that it was given: they may start later than it.
	joinInterval = 2 * time.Second
	// leaveTimeout bounds how long the others are told of a leave.
	leaveTimeout = 2 * time.Second
	// labelMax is memberlist's bound on a label, in bytes.
	labelMax = 32
)

// Config is what a Farm is built from.
type Config struct {
	// Name of the farm; farms of other names never merge with this one.
	Name string
	// Node names this member: its peer ID.
	Node string
	// Bind is HOST:PORT to gossip on; port 0 takes a free one.
	Bind string
	// Join are HOST:PORT of some neighbours, who may start later.
	Join []string
	// Key encrypts the gossip; 32 bytes that the members share.
	Key [32]byte
	// Addrs are the multiaddrs that neighbours reach this member's swarm at.
	Addrs []string
	// Transport replaces the network, in simulations; nil uses Bind.
	Transport memberlist.Transport
	// Log may be nil.
	Log *slog.Logger
}

// Member is one live neighbour, or this member itself.
type Member struct {
	// Node is its peer ID.
	Node string
	// Addrs are its swarm's multiaddrs.
	Addrs []string
	// Address is its gossip HOST:PORT.
	Address string
}

// meta is what a member says of itself in gossip.
type meta struct {
	_     struct{} `cbor:",toarray"`
	Addrs []string
}

// Farm is this member's view of its farm. Use: New, Start, Run.
type Farm struct {
	cfg  Config
	meta []byte
	list *memberlist.Memberlist

	mu       sync.Mutex // guards what follows
	members  []Member
	watchers map[chan struct{}]bool
}

// New checks the configuration.
func New(cfg Config) (*Farm, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := content.CheckName(cfg.Name); err != nil {
		return nil, fmt.Errorf("farm: %w", err)
	}
	m, err := cbor.Marshal(meta{Addrs: cfg.Addrs})
	if err != nil {
		return nil, fmt.Errorf("farm: %w", err)
	}
	for len(m) > metaMax && len(cfg.Addrs) > 1 {
		cfg.Addrs = cfg.Addrs[:len(cfg.Addrs)-1]
		if m, err = cbor.Marshal(meta{Addrs: cfg.Addrs}); err != nil {
			return nil, fmt.Errorf("farm: %w", err)
		}
	}
	return &Farm{cfg: cfg, meta: m, watchers: map[chan struct{}]bool{}}, nil
}

// Start begins to gossip; an address in use is found here. Run ends it.
func (f *Farm) Start() error {
	c := memberlist.DefaultLANConfig()
	c.Name = f.cfg.Node
	c.SecretKey = f.cfg.Key[:]
	c.Label = label(f.cfg.Name)
	c.Delegate, c.Events = delegate{f}, events{f}
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = probeInterval, probeTimeout, suspicionMult
	c.Logger = log.New(logWriter{f.cfg.Log}, "", 0)
	c.Transport = f.cfg.Transport
	if c.Transport == nil {
		host, port, err := splitBind(f.cfg.Bind)
		if err != nil {
			return err
		}
		c.BindAddr, c.BindPort, c.AdvertisePort = host, port, port
	}
	list, err := memberlist.Create(c)
	if err != nil {
		return fmt.Errorf("farm %s on %s: %w", f.cfg.Name, f.cfg.Bind, err)
	}
	f.list = list
	f.refresh()
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

func splitBind(bind string) (host string, port int, err error) {
	host, portText, err := net.SplitHostPort(bind)
	if err == nil {
		port, err = strconv.Atoi(portText)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("farm address %q: %w: want HOST:PORT", bind, content.ErrInvalid)
	}
	return cmp.Or(host, "0.0.0.0"), port, nil
}

// Run looks for the neighbours while this member is alone, until ctx ends; then
// it says good-bye and stops.
func (f *Farm) Run(ctx context.Context) error {
	tick := time.NewTicker(joinInterval)
	defer tick.Stop()
	said := false
	for {
		if len(f.cfg.Join) > 0 && len(f.Members()) <= 1 {
			if _, err := f.list.Join(f.cfg.Join); err != nil && !said {
				said = true
				f.cfg.Log.Warn("no neighbour of the farm answers yet; is the gossip key of this farm theirs?", "join", f.cfg.Join, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(f.list.Leave(leaveTimeout), f.list.Shutdown())
		}
	}
}

// Address is the HOST:PORT that a neighbour's Join takes.
func (f *Farm) Address() string { return f.list.LocalNode().Address() }

// Members returns the live members, this one included, sorted by Node.
func (f *Farm) Members() []Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members
}

// Watch returns a channel that has an element whenever the members have changed
// since it was last received from; it ends with ctx.
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

// change applies one event to the members.
func (f *Farm) change(n *memberlist.Node, here bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(f.members), func(m Member) bool { return m.Node == n.Name })
	if here {
		next = append(next, member(n))
	}
	f.publish(next)
}

// refresh reads the members anew.
func (f *Farm) refresh() {
	var next []Member
	for _, n := range f.list.Members() {
		next = append(next, member(n))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish(next)
}

// publish is called with mu.
func (f *Farm) publish(next []Member) {
	slices.SortFunc(next, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	f.members = next
	for ch := range f.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func member(n *memberlist.Node) Member {
	var m meta
	cbor.Unmarshal(n.Meta, &m) // a member without addresses can't be asked, which its requests show
	return Member{n.Name, m.Addrs, n.Address()}
}

// events and delegate are the faces that memberlist wants.
type events struct{ f *Farm }

func (e events) NotifyJoin(n *memberlist.Node)   { e.f.change(n, true) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.f.change(n, true) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.f.change(n, false) }

type delegate struct{ f *Farm }

func (d delegate) NodeMeta(int) []byte           { return d.f.meta }
func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

// logWriter hands memberlist's lines to our log, warnings as such, the rest for
// debugging.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := slog.LevelDebug
	if strings.HasPrefix(line, "[ERR]") || strings.HasPrefix(line, "[WARN]") {
		level = slog.LevelInfo
	}
	w.log.Log(context.Background(), level, "gossip", "said", line)
	return len(b), nil
}
