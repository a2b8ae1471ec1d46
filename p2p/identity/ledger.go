// Package identity remembers which peers have proved who they are: each by a
// certificate chain about the very key that its connections are made with. It does
// not matter who opened the connection, or who asked whom on it.
//
// It also holds who is shut out, for whatever reason, and nobody else does. Whom to pass
// over for a while, or to ask for what, is the planner's to say: what connects and what
// carries requests reports failures, and remembers none.
package identity

import (
	"bytes"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// CheckInterval is how often proofs are to be checked again, see Recheck: a
	// certificate that expires counts for so much longer at most.
	CheckInterval = time.Minute
	// keptFor is how long a proof outlives the connection, for one that is made again.
	keptFor = 10 * time.Minute
	// peersMax bounds the proofs, of some KiB each, to several times the connections
	// that a member has. Only who has a certificate takes a place.
	peersMax = 16 << 10
	// bansMax bounds the bans; beyond it one or other is forgotten, which costs its
	// member another lie to be banned again.
	bansMax = 10_000
)

// ErrNone is for a peer that shows no certificate.
var ErrNone = fmt.Errorf("%w: the peer shows no certificate", content.ErrForbidden)

// Ledger says who has proved what, and who is shut out. Safe for concurrent use.
type Ledger struct {
	verifier *trust.Verifier
	now      func() time.Time
	codec    *content.Codec

	// checking is held while signatures are verified, so that chains that strangers
	// make up cost one core at most, and that what was verified before a revocation
	// is known to Recheck. It is taken before mu.
	checking sync.Mutex
	mu       sync.RWMutex // guards what follows
	proofs   map[peer.ID]proof
	bans     map[peer.ID]Ban
}

// Ban is until when a peer is shut out, and why.
type Ban struct {
	Until time.Time
	Why   string
}

type proof struct {
	encoded []byte
	chain   trust.Chain
	who     trust.Identity
	seen    time.Time // when it was shown last, or the peer last was connected
}

// New returns an empty ledger; now is the clock that certificates and bans go by.
func New(v *trust.Verifier, now func() time.Time) *Ledger {
	return &Ledger{verifier: v, now: now, codec: content.NewCodec(), proofs: map[peer.ID]proof{}, bans: map[peer.ID]Ban{}}
}

// Mesh is the mesh whose members may prove that they are.
func (l *Ledger) Mesh() trust.PublicKey { return l.verifier.Mesh() }

// Of returns who a peer has proved to be, by its certificate; false for nobody.
func (l *Ledger) Of(id peer.ID) (trust.Identity, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	p, ok := l.proofs[id]
	return p.who, ok
}

// Present takes the encoded chain that a peer shows; fresh says that it was not known
// by it. No chain is as good as what the peer has shown before, ErrNone if nothing.
// One that is no chain, or is about another key, is content.ErrCorrupt: nobody comes
// by such a one by accident. One that is not good here is content.ErrForbidden.
func (l *Ledger) Present(id peer.ID, encoded []byte) (fresh bool, err error) {
	if known, err := l.known(id, encoded); known || err != nil {
		return false, err
	}
	var chain trust.Chain
	if err := l.codec.Unmarshal(encoded, &chain); err != nil {
		return false, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if err := subjectIs(chain, id); err != nil {
		return false, err
	}
	l.checking.Lock()
	defer l.checking.Unlock()
	if known, err := l.known(id, encoded); known || err != nil { // by another stream, meanwhile
		return false, err
	}
	who, err := l.verifier.Recognize(chain, l.now())
	if err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before, had := l.proofs[id]
	if !had && len(l.proofs) >= peersMax {
		l.evict()
	}
	l.proofs[id] = proof{bytes.Clone(encoded), chain, who, l.now()}
	return before.who != who, nil
}

// known reports whether the peer has proved itself by this chain already.
func (l *Ledger) known(id peer.ID, encoded []byte) (bool, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	p, ok := l.proofs[id]
	if len(encoded) == 0 {
		if !ok {
			return false, ErrNone
		}
		return true, nil
	}
	return ok && bytes.Equal(p.encoded, encoded), nil
}

// evict makes room: the one that was seen longest ago goes. The caller holds mu.
func (l *Ledger) evict() {
	var oldest peer.ID
	for id, p := range l.proofs {
		if oldest == "" || p.seen.Before(l.proofs[oldest].seen) {
			oldest = id
		}
	}
	delete(l.proofs, oldest)
}

// Recheck verifies all chains again, forgets those of peers that are long gone, as far
// as connected says, and returns the peers whose certificate is revoked or has expired.
// A revocation that the verifier was told of before counts for what is presented from
// here on.
func (l *Ledger) Recheck(connected func(peer.ID) bool) (lost []peer.ID) {
	l.checking.Lock()
	defer l.checking.Unlock()
	now := l.now()
	l.mu.RLock()
	all := maps.Clone(l.proofs)
	l.mu.RUnlock()
	for id, p := range all {
		_, err := l.verifier.Recognize(p.chain, now)
		here := connected(id)
		if err != nil {
			lost = append(lost, id)
		}
		l.mu.Lock()
		switch {
		case err != nil, !here && now.Sub(p.seen) > keptFor:
			delete(l.proofs, id)
		case here:
			p.seen = now
			l.proofs[id] = p
		}
		l.mu.Unlock()
	}
	return lost
}

// Ban shuts a peer out for a while, for a reason that people read, or for as long as it was before where that is longer.
func (l *Ledger) Ban(id peer.ID, d time.Duration, why string) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.bans, func(_ peer.ID, b Ban) bool { return !now.Before(b.Until) })
	before, banned := l.bans[id]
	for other := range l.bans {
		if banned || len(l.bans) < bansMax {
			break
		}
		delete(l.bans, other)
	}
	if now.Add(d).After(before.Until) {
		l.bans[id] = Ban{now.Add(d), why}
	}
}

// ShutOut reports whether no connection is to be had with a peer: it is banned, or its
// key was revoked.
func (l *Ledger) ShutOut(id peer.ID) bool {
	if l.Revoked(id) {
		return true
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.now().Before(l.bans[id].Until)
}

// Revoked reports whether a peer's key was revoked.
func (l *Ledger) Revoked(id peer.ID) bool {
	key, err := KeyOf(id)
	if err != nil {
		return false
	}
	_, revoked := l.verifier.Revoked(key)
	return revoked
}

// Bans are the peers that are banned now.
func (l *Ledger) Bans() map[peer.ID]Ban {
	now := l.now()
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := maps.Clone(l.bans)
	maps.DeleteFunc(out, func(_ peer.ID, b Ban) bool { return !now.Before(b.Until) })
	return out
}

// subjectIs fails with ErrCorrupt unless the chain is about the peer's own key.
func subjectIs(chain trust.Chain, id peer.ID) error {
	if len(chain) == 0 {
		return fmt.Errorf("certificate of %s: %w: an empty chain", id, content.ErrCorrupt)
	}
	subject := chain.Identity().Key
	if key, err := KeyOf(id); err != nil || key != subject {
		return fmt.Errorf("certificate of %s: %w: it was issued to %s", id, content.ErrCorrupt, subject)
	}
	return nil
}

// PeerID returns the peer ID of a member's key.
func PeerID(k trust.PublicKey) peer.ID {
	pub, err := crypto.UnmarshalEd25519PublicKey(k[:])
	var id peer.ID
	if err == nil {
		id, err = peer.IDFromPublicKey(pub)
	}
	if err != nil { // any key of that length has one
		panic(fmt.Sprintf("identity: peer ID of %s: %v", k, err))
	}
	return id
}

// KeyOf returns the key that a peer ID is made of; another kind is content.ErrInvalid.
func KeyOf(id peer.ID) (trust.PublicKey, error) {
	public, err := id.ExtractPublicKey()
	if err != nil {
		return trust.PublicKey{}, fmt.Errorf("member %s: %w: %w", id, content.ErrInvalid, err)
	}
	raw, err := public.Raw()
	if err != nil || len(raw) != len(trust.PublicKey{}) {
		return trust.PublicKey{}, fmt.Errorf("member %s: %w: not an Ed25519 key", id, content.ErrInvalid)
	}
	return trust.PublicKey(raw), nil
}
