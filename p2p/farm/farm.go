// Package farm tells who is here: the members of one farm, on one LAN, found by
// encrypted gossip. It says who is alive, never who leads: that is the planner's
// to decide. A member that is only suspected to be dead is alive still.
//
// Who has the gossip's key alone is no member: one is listed once its certificate is
// known, and only at the address that it has signed itself.
package farm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/identity"
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
	// syncInterval is how often a member exchanges all that it knows with another, for
	// news that was missed; gossip makes it four times as long among 200 members.
	syncInterval = 10 * time.Second
	// reclaimAfter is how soon after its death a member may come back with another
	// address. Gossip would by default insist on the old one.
	reclaimAfter = time.Second
	// retransmitMult times the logarithm of the members is how often news is passed on.
	retransmitMult = 4
	// recheckInterval is how often certificates are verified again, which may expire.
	recheckInterval = 10 * time.Minute
	// sayTimeout bounds the wait until another has heard this member's word.
	sayTimeout = time.Second
	// leaveTimeout bounds how long the others are told of a leave.
	leaveTimeout = 2 * time.Second
	// labelMax is the longest name of a farm that labels its gossip as it is.
	labelMax = 32
)

// Config is what a Farm is built from.
type Config struct {
	// Signer is this member's key and certificate, which names it and its farm.
	Signer trust.Signer
	// Verifier says whose certificates hold; when it learns of revocations, Recheck.
	Verifier *trust.Verifier
	// Bind is HOST:PORT to gossip on; port 0 takes a free one, no host that of Place, also
	// when the host has another address than at the start.
	Bind string
	// Join are HOST:PORT of some neighbours, who may start later. Those on the LAN are found.
	Join []string
	// Key encrypts the gossip; 32 bytes that the members share, not all zero. Who has
	// it alone hears who is here, and is not listed. Rotate changes it.
	Key [32]byte
	// Addrs are those of this member's swarm, the best first: some thirty fit. Tell
	// changes them.
	Addrs []ma.Multiaddr
	// Name says what people call a member, for the log; nil has no names.
	Name func(peer.ID) string
	// Transport replaces the network, in simulations; nil uses Bind.
	Transport memberlist.Transport
	// Now may be nil.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	who := c.Signer.Identity()
	if !who.Role.IsMember() {
		return c, fmt.Errorf("farm: %w: a %q does not gossip; join with a token of role node", content.ErrInvalid, who.Role)
	}
	if err := content.CheckName(who.Farm); err != nil {
		return c, fmt.Errorf("farm: %w", err)
	}
	if c.Verifier == nil || c.Signer.Key.Public() != who.Key {
		return c, fmt.Errorf("farm %s: %w: a member needs a verifier, and the key of its certificate", who.Farm, content.ErrInvalid)
	}
	if c.Key == ([32]byte{}) {
		return c, fmt.Errorf("farm %s: %w: no gossip key; members of role node have it", who.Farm, content.ErrInvalid)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.Name == nil {
		c.Name = func(peer.ID) string { return "" }
	}
	return c, nil
}

// Member is one live neighbour, or this member itself.
type Member struct {
	ID peer.ID
	// Identity is what its certificate says.
	Identity trust.Identity
	// Addrs are its swarm's.
	Addrs []ma.Multiaddr
	// Address is its gossip HOST:PORT.
	Address string
}

// Farm is this member's view of its farm. Use: New, Start, Run.
type Farm struct {
	cfg     Config
	name    string
	codec   *content.Codec
	metrics metrics
	ring    *memberlist.Keyring
	list    atomic.Pointer[memberlist.Memberlist] // another one at another address
	news    memberlist.TransmitLimitedQueue
	here    atomic.Pointer[here]
	outdone chan uint64   // the number of a word of this member's that is above its own
	rotated chan struct{} // a key came
	changed chan struct{} // who is listed
	wake    chan struct{} // there is somebody to join

	mu      sync.Mutex // guards what follows
	turn    int        // how often it has moved; changed by move alone
	self    Member     // its ID and Identity never change
	word    word       // this member's own
	roster  roster     // of the others
	keys    []agedKey
	lost    map[string]Absence // by gossip address
	found   map[string]bool    // gossip addresses of the farm's, on the LAN
	joining error              // why no neighbour was joined at the last attempt
}

// here is who is listed; never changed in place.
type here struct {
	members []Member
	ids     []peer.ID
}

// New checks the configuration.
func New(cfg Config) (*Farm, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	who := cfg.Signer.Identity()
	f := &Farm{
		cfg: cfg, name: who.Farm, codec: content.NewCodec(), outdone: make(chan uint64, 1), rotated: make(chan struct{}, 1),
		self: Member{ID: identity.PeerID(who.Key), Identity: who, Addrs: cfg.Addrs}, roster: roster{}, keys: []agedKey{{key: cfg.Key}},
		lost: map[string]Absence{}, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), found: map[string]bool{},
	}
	f.metrics = newMetrics(f)
	if f.word, err = (word{addrs: cfg.Addrs}).sign(f.name, cfg.Signer); err == nil {
		f.ring, err = memberlist.NewKeyring(nil, cfg.Key[:])
	}
	if err != nil {
		return nil, fmt.Errorf("farm %s: %w", f.name, err)
	}
	f.news.RetransmitMult, f.news.NumNodes = retransmitMult, func() int { return len(f.here.Load().ids) }
	f.publish()
	return f, nil
}

// label keeps farms apart; a long name is shortened to its hash.
func label(name string) string {
	if len(name) <= labelMax {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:labelMax/2])
}

// Run looks for neighbours until ctx ends; then it says good-bye and stops.
func (f *Farm) Run(ctx context.Context) error {
	var group sync.WaitGroup
	group.Go(func() { f.keepKeys(ctx) })
	group.Go(func() { f.keepProved(ctx) })
	group.Go(func() { f.keepPlaced(ctx) })
	f.keepJoined(ctx)
	group.Wait()
	list := f.list.Load()
	if err := list.Leave(leaveTimeout); err != nil { // as when all stop at once: the others find out by themselves
		f.cfg.Log.Debug("gossip: nobody has heard that this member leaves", "err", err)
	}
	return list.Shutdown()
}

// keepProved looks at the certificates again from time to time, and speaks up when the
// others know a word of this member's that outdoes its own, until ctx ends.
func (f *Farm) keepProved(ctx context.Context) {
	tick := time.Tick(recheckInterval)
	for {
		select {
		case <-tick:
			f.Recheck()
		case number := <-f.outdone:
			f.cfg.Log.Warn("the farm remembers a later start of this node: its clock went back, or a copy of its data folder runs elsewhere")
			if err := f.say(number + 1); err != nil {
				f.cfg.Log.Debug("gossip: nobody has heard this member's new word yet", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Address is the HOST:PORT that a neighbour's Join takes.
func (f *Farm) Address() string { return f.list.Load().LocalNode().Address() }

// Members returns the live members that have proved that they are, this one included,
// sorted by ID. The slice must not be changed.
func (f *Farm) Members() []Member { return f.here.Load().members }

// Live returns the IDs of the Members. The slice must not be changed.
func (f *Farm) Live() []peer.ID { return f.here.Load().ids }

// Changed has an element at first, and then whenever the members have changed since it
// was received from. It is for one to follow, and never closed.
func (f *Farm) Changed() <-chan struct{} { return f.changed }

// Recheck verifies all certificates again, as when the verifier has learnt of a
// revocation: whose does not hold is not listed any more when it returns.
func (f *Farm) Recheck() {
	f.mu.Lock()
	certs := map[peer.ID]certificate{}
	for id, k := range f.roster {
		if k.cert.sealed != "" {
			certs[id] = k.cert
		}
	}
	f.mu.Unlock()
	for id, c := range certs { // without the lock, for it takes a while
		_, err := f.verify(id, c.chain)
		c.good = err == nil
		certs[id] = c
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := false
	for id, c := range certs {
		if k := f.roster[id]; k != nil && k.cert.sealed == c.sealed { // else it was looked at since
			changed = k.change(func() { k.cert.good = c.good }) || changed
		}
	}
	if changed {
		f.publish()
	}
}

func (f *Farm) note(changed bool) {
	if !changed {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish()
}

// publish makes the list anew, and says who is new in it, and who is gone. Called with mu.
func (f *Farm) publish() {
	next := &here{members: f.roster.members(f.self)}
	for _, m := range next.members {
		next.ids = append(next.ids, m.ID)
	}
	last := f.here.Swap(next)
	if last != nil {
		f.tell(last, next)
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// tell has the log say how the list has changed. Called with mu.
func (f *Farm) tell(last, next *here) {
	missing := func(from *here, m Member) bool {
		return m.ID != f.self.ID && !slices.Contains(from.ids, m.ID)
	}
	for _, m := range next.members {
		if missing(last, m) {
			f.cfg.Log.Info("a member of the farm is here", "name", f.cfg.Name(m.ID), "peer", m.ID, "address", m.Address)
		}
	}
	for _, m := range last.members {
		switch {
		case !missing(next, m):
		case f.lost[m.Address].Left:
			f.cfg.Log.Info("a member of the farm has left", "name", f.cfg.Name(m.ID), "peer", m.ID, "address", m.Address)
		default:
			f.cfg.Log.Warn("a member of the farm is lost", "name", f.cfg.Name(m.ID), "peer", m.ID, "address", m.Address)
		}
	}
}
