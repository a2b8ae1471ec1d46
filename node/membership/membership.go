// Package membership is what a member knows of its mesh: its own certificate and
// secrets, who else belongs to it, and who does no more. It joins and founds, lets
// others join, and has news spread: each member passes on what is new to it at once,
// and two that meet compare what they know.
//
// What lies in the data folder is the truth at each moment: a change is on disk
// before anything acts on it, so that a member that is killed goes on from either side
// of the change.
//
//	identity.key   this member's key
//	mesh.key       the mesh key, where it was founded or brought
//	membership     mesh, certificate, secrets, origin, bootstrap addresses
//	invites/       tokens that were made here
//	revoked/       a file for each key that was revoked, with the time of learning
//	roll           the members that were met, with their certificates
//
// It does not know volumes, images or records other than revocations.
package membership

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/identity"
)

// formerFor is how long the secrets before a rotation are used too: twice as long as an
// announcement under them is good, for members that hear of it late.
const formerFor = time.Hour

// formerGossipFor is how long after a rotation a start begins with the gossip key
// before: neighbours speak that for a minute more, and understand it for ten.
const formerGossipFor = 5 * time.Minute

// Network is how other members are reached.
type Network interface {
	// Peers are the members that this one is connected with.
	Peers() []peer.ID
	// Meet returns who a peer has proved to be.
	Meet(ctx context.Context, id peer.ID) (trust.Identity, error)
	// Call asks a peer.
	Call(ctx context.Context, id peer.ID, method string, body []byte) ([]byte, error)
}

// Config is what a Membership is built from; of the functions only Now is needed before
// it runs.
type Config struct {
	Dir      string
	Identity trust.PrivateKey
	// Name is what others are shown of this member.
	Name string
	// Catalog returns the records of the origin, nil while it does not answer, and
	// whether this member may write there.
	Catalog func() (c *catalog.Catalog, writable bool)
	// Told takes what was read there at that time, so that it need not be read again.
	Told func(catalog.Record, time.Time)
	// OnRevoked is told that the set of revoked keys has changed, with those new in it:
	// what was believed of anybody is to be checked again. The verifier knows already.
	OnRevoked func(fresh []trust.PublicKey)
	// OnRotated is told of new secrets.
	OnRotated func(trust.Secrets)
	// OnRenewed is told of a new certificate of this member's own.
	OnRenewed func(trust.Chain)
	// Incarnation is what this member says of this start, OnIncarnation told of another's.
	Incarnation   func() []byte
	OnIncarnation func([]byte)
	Now           func() time.Time
	Log           *slog.Logger
}

// Membership is this member's place in its mesh: Open, Connect, Run. Concurrently safe.
type Membership struct {
	cfg      Config
	codec    *content.Codec
	verifier *trust.Verifier
	invites  *trust.Invites
	roll     *roll
	network  Network
	contacts contacts
	wake     chan struct{} // there is news to tell
	seek     chan struct{} // there are secrets, or a certificate, to be asked for

	changing sync.Mutex   // one change of the files at a time; before mu
	mu       sync.RWMutex // guards what follows
	state    State
	revoked  map[trust.PublicKey]revoked
	spent    map[trust.PublicKey]int // how many of them are of each admin that the mesh key made, and its deputies
	digest   [32]byte                // of the revoked keys
	news     []revoked               // revocations that connected members are still to be told
	compared time.Time               // when this member had last evened out with another, since caughtAfter at least
	owed     time.Time               // when to look whether the origin has all revocations; zero: it has
	notice   []byte                  // the newest rotation that is known of
	newest   trust.Generation
	starts   map[trust.PublicKey][]byte // the incarnation of each member that was heard last
}

// Open reads the data folder; one whose own key was revoked is opened, and says so.
func Open(cfg Config, s State) (*Membership, error) {
	m := &Membership{
		cfg: cfg, codec: content.NewCodec(), verifier: trust.NewVerifier(s.Mesh), state: s, revoked: map[trust.PublicKey]revoked{}, spent: map[trust.PublicKey]int{}, starts: map[trust.PublicKey][]byte{},
		wake: make(chan struct{}, 1), seek: make(chan struct{}, 1), notice: s.Rotation, newest: s.Secrets.Generation,
	}
	issued := cfg.Now()
	if len(s.Chain) > 0 {
		issued = s.Chain[0].NotBefore
	}
	_, err := m.verifier.Certified(s.Chain, issued)
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	if _, err := m.verifier.Certified(s.Chain, cfg.Now()); err != nil {
		cfg.Log.Error("no member deals with this node; its own volumes are served all the same", "err", err)
	}
	if m.invites, err = trust.OpenInvites(filepath.Join(cfg.Dir, invitesDir)); err != nil {
		return nil, err
	}
	if m.roll, err = openRoll(filepath.Join(cfg.Dir, rollFile), cfg.Log); err != nil {
		return nil, err
	}
	if err := m.loadRevoked(); err != nil {
		return nil, err
	}
	m.verifier.Remember(m.roll.knownSince, m.roll.last)
	m.install()
	m.digest = digestOf(m.revoked)
	m.roll.proved(s.Chain, cfg.Name, cfg.Now())
	if _, ok := m.verifier.Revoked(cfg.Identity.Public()); ok {
		cfg.Log.Error("this node was revoked: no member of the mesh deals with it any more; to be one again, join with a new token and an empty --data")
	}
	return m, nil
}

// Connect says how others are reached, before Run and before anything is asked.
func (m *Membership) Connect(n Network) { m.network = n }

// Run spreads and hears news until ctx ends, then writes down who was met.
func (m *Membership) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, run := range []func(context.Context){m.keepGreeted, m.keepTold, m.keepStored, m.keepSought, m.keepRoll} {
		wg.Go(func() { run(ctx) })
	}
	wg.Wait()
	return m.roll.save()
}

// Save writes down who was met, which else is done when Run ends.
func (m *Membership) Save() error { return m.roll.save() }

// Verifier knows who was revoked.
func (m *Membership) Verifier() *trust.Verifier { return m.verifier }

// State returns what is on record now.
func (m *Membership) State() State {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state
}

// Identity is what this member's certificate says.
func (m *Membership) Identity() trust.Identity { return m.State().Chain.Identity() }

// Signer signs with this member's key and the certificate that it has at the time.
func (m *Membership) Signer() trust.Signer {
	return trust.Signer{Key: m.cfg.Identity, Chain: m.State().Chain, Renewed: func() trust.Chain { return m.State().Chain }}
}

// Announce returns the secrets that roots of a scope are announced under, the one to use
// first. A farm's own are under its own: other members must not find who has them.
func (m *Membership) Announce(scope content.Scope) (out [][32]byte) {
	s := m.State()
	all := []trust.Secrets{s.Secrets}
	if former, ok := s.former(m.cfg.Now(), formerFor); ok {
		all = append(all, former)
	}
	for _, x := range all {
		if scope.Farm() == "" {
			out = append(out, x.Announce)
		} else {
			out = append(out, sha256.Sum256(append([]byte("grange announce "), x.Gossip[:]...)))
		}
	}
	return out
}

// Gossip returns the keys of the farm's gossip, the newest last.
func (m *Membership) Gossip() [][32]byte {
	s := m.State()
	if former, ok := s.former(m.cfg.Now(), formerGossipFor); ok {
		return [][32]byte{former.Gossip, s.Secrets.Gossip}
	}
	return [][32]byte{s.Secrets.Gossip}
}

// change brings the state on disk, then in memory, to what f makes of it.
func (m *Membership) change(f func(*State) error) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	next := m.State()
	if err := f(&next); err != nil {
		return err
	}
	if err := next.save(m.cfg.Dir); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = next
	return nil
}

// SawOrigin notes that a bucket is the mesh's: what a start asks, and claims no more.
func (m *Membership) SawOrigin(url string) error {
	if s := m.State(); s.Origin == url && s.Seen {
		return nil
	}
	return m.change(func(s *State) error { s.Origin, s.Seen = url, true; return nil })
}

// Moved notes where this member is served now.
func (m *Membership) Moved(place []string) error {
	if len(place) == 0 || slices.Equal(m.State().Place, place) {
		return nil
	}
	return m.change(func(s *State) error { s.Place = place; return nil })
}

// admin fails with ErrForbidden unless this member is an admin; what is the deed.
func (m *Membership) admin(what string) error {
	if id := m.Identity(); id.Role != trust.RoleAdmin {
		return fmt.Errorf("%s: %w: this node is a %s; ask an admin, such as the node that founded the mesh", what, content.ErrForbidden, id.Role)
	}
	if since, ok := m.verifier.Revoked(m.cfg.Identity.Public()); ok {
		return fmt.Errorf("%s: %w: this node was revoked on %s", what, content.ErrForbidden, since.UTC().Format(time.RFC3339))
	}
	return nil
}

// issuer signs certificates of a role. Those of admins are the mesh key's where it is at
// hand: they hold when the admin that redeemed the token is lost or revoked.
func (m *Membership) issuer(role trust.Role) (trust.Signer, error) {
	if role == trust.RoleAdmin {
		key, err := m.MeshKey()
		if !errors.Is(err, content.ErrNotFound) {
			return trust.Signer{Key: key}, err
		}
	}
	return m.Signer(), nil
}

// every calls fn at once, and then at each tick and each nudge, until ctx ends.
func every(ctx context.Context, interval time.Duration, nudged <-chan struct{}, fn func()) {
	tick := time.Tick(interval)
	for {
		fn()
		select {
		case <-tick:
		case <-nudged:
		case <-ctx.Done():
			return
		}
	}
}

// nudge wakes a loop.
func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// The calls of this package.
const (
	redeemMethod  = "redeem"  // a newcomer shows its invite
	greetMethod   = "trust"   // two members compare what they know
	revokedMethod = "revoked" // what one lacks of the other's revocations
	secretsMethod = "secrets" // the secrets of the newest generation
	renewMethod   = "renew"   // a certificate in place of one whose issuer was revoked
	rollMethod    = "roll"    // whom the other has met
)

// Call implements exchange.Answerer for the calls of this package; any other is
// ErrNotFound. Strangers may redeem, and nothing else.
func (m *Membership) Call(_ context.Context, from exchange.Peer, method string, body []byte) ([]byte, error) {
	if method == redeemMethod {
		return Answer(m.codec, body, func(q redeemRequest) (papers, error) { return m.redeem(from.ID, q) })
	}
	if from.Identity.Role == "" {
		return nil, fmt.Errorf("call %.20q: %w", method, content.ErrNotFound)
	}
	switch method {
	case greetMethod:
		return Answer(m.codec, body, func(g greeting) (greeting, error) { return m.greeted(from.Identity, g) })
	case revokedMethod:
		return Answer(m.codec, body, m.lacking)
	case secretsMethod:
		return Answer(m.codec, body, func(struct{}) (papers, error) { return m.secretsFor(from.Identity) })
	case renewMethod:
		return Answer(m.codec, body, func(struct{}) (papers, error) { return m.renewFor(from.Identity) })
	case rollMethod:
		return Answer(m.codec, body, m.rollPage)
	}
	return nil, fmt.Errorf("call %.20q: %w", method, content.ErrNotFound)
}

// Answer decodes the body of a call, and encodes what fn says to it.
func Answer[Q, A any](codec *content.Codec, body []byte, fn func(Q) (A, error)) ([]byte, error) {
	var q Q
	if err := codec.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	a, err := fn(q)
	if err != nil {
		return nil, err
	}
	return codec.Marshal(a)
}

type redeemRequest struct {
	Invite  trust.Invite    `cbor:"invite"`
	Subject trust.PublicKey `cbor:"subject"`
	// Name is what the newcomer calls itself.
	Name string `cbor:"name"`
}

// papers are what a member is one with, and an admin's word that the secrets are those.
type papers struct {
	Chain    trust.Chain   `cbor:"chain"`
	Secrets  trust.Secrets `cbor:"secrets"`
	Rotation []byte        `cbor:"rotation"`
	// By and Name are the admin's that has answered a newcomer.
	By   trust.Chain `cbor:"by"`
	Name string      `cbor:"name"`
}

// rotation is the one that the secrets are of, for a member of that identity.
func (p papers) rotation(v *trust.Verifier, id trust.Identity, now time.Time) (trust.Rotation, error) {
	r, err := v.OpenRotation(p.Rotation, now)
	if err != nil {
		return r, err
	}
	return r, r.Admit(p.Secrets, id.Role, id.Farm)
}

// redeem answers a newcomer that shows an invite of this node. It has secrets in it, so
// it goes to nobody but the owner of the key that the invite is, or was, used for.
func (m *Membership) redeem(from peer.ID, q redeemRequest) (r papers, err error) {
	if err := m.admin("redeem invite"); err != nil {
		return r, err
	}
	if id := identity.PeerID(q.Subject); id != from {
		return r, fmt.Errorf("redeem invite: %w: for %s, and %s asks", content.ErrForbidden, id, from)
	}
	now := m.cfg.Now()
	if since, ok := m.verifier.Revoked(q.Subject); ok {
		return r, fmt.Errorf("redeem invite: %w: the key was revoked on %s; join with an empty --data", content.ErrForbidden, since.UTC().Format("2006-01-02"))
	}
	chain, err := m.invites.Redeem(q.Invite, q.Subject, now, func(id trust.Identity) (trust.Chain, error) {
		if _, err := m.secretsFor(id); err != nil && id.Role.IsMember() { // before the invite is spent
			return nil, err
		}
		signer, err := m.issuer(id.Role)
		if err != nil {
			return nil, err
		}
		return signer.Issue(id, now)
	})
	if err != nil {
		return r, err
	}
	id := chain.Identity()
	if id.Role.IsMember() {
		if r, err = m.secretsFor(id); err != nil {
			return r, err
		}
	}
	r.Chain, r.By, r.Name = chain, m.State().Chain, m.cfg.Name
	m.roll.proved(chain, q.Name, now)
	m.cfg.Log.Info("a member joined", "peer", from, "role", id.Role, "farm", id.Farm)
	return r, nil
}
