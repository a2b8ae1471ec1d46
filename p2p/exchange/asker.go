package exchange

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// certificateCheck is how long a checked certificate is believed: a revocation
// reaches open streams within this time.
const certificateCheck = time.Minute

// asker is a peer that has streams open to us.
type asker struct {
	id   peer.ID
	link *link

	// mu guards what follows; nothing is locked under it.
	mu        sync.Mutex
	streams   int
	encoded   []byte // the chain that was presented last
	chain     trust.Chain
	identity  trust.Identity
	checkedAt time.Time
	budget    budget
	stranger  bool
}

// askers are the peers that have streams open to us.
type askers struct {
	mu    sync.Mutex
	peers map[peer.ID]*asker
}

// join counts a new stream of a peer.
func (s *askers) join(id peer.ID) (*asker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.peers[id]
	if a == nil {
		a = &asker{id: id, link: &link{begun: time.Now()}, stranger: true, budget: strangerBudget()}
		s.peers[id] = a
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams >= streamsMax {
		return nil, fmt.Errorf("%w: peer has %d streams open", content.ErrUnavailable, a.streams)
	}
	a.streams++
	return a, nil
}

// leave counts the end of a stream.
func (s *askers) leave(a *asker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streams--; a.streams == 0 {
		delete(s.peers, a.id)
	}
}

// admit refuses one more stranger than there may be.
func (s *askers) admit(a *asker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	strangers := 0
	for _, other := range s.peers {
		other.mu.Lock()
		if other.stranger {
			strangers++
		}
		other.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stranger && strangers > strangersMax {
		return fmt.Errorf("%w: %d strangers are being served", content.ErrUnavailable, strangersMax)
	}
	return nil
}

// find returns the asker of that id, nil when it has no stream open.
func (s *askers) find(id peer.ID) *asker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers[id]
}

// present takes the chain of a hello. A chain of somebody else is a violation
// (ErrCorrupt); one that is not good here makes the peer a stranger.
func (a *asker) present(x *Exchange, h wire.Hello) error {
	chain, err := x.chainOf(a.id, h.Chain)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.checkedAt.IsZero() || !bytes.Equal(a.encoded, h.Chain) {
		a.encoded, a.chain = h.Chain, chain
		a.check(x)
	}
	return nil
}

// chainOf decodes the chain of a peer's hello, nil for none. One of somebody else is
// ErrCorrupt; whether it is good is the verifier's to say.
func (x *Exchange) chainOf(id peer.ID, encoded []byte) (trust.Chain, error) {
	if len(encoded) == 0 {
		return nil, nil
	}
	var chain trust.Chain
	if err := x.cbor.Unmarshal(encoded, &chain); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return chain, subjectIs(chain, id)
}

// subjectIs fails with ErrCorrupt unless the chain is about the peer's own key.
func subjectIs(chain trust.Chain, id peer.ID) error {
	key, err := id.ExtractPublicKey()
	if err != nil {
		return fmt.Errorf("certificate of %s: %w: %w", id, content.ErrCorrupt, err)
	}
	raw, err := key.Raw()
	if subject := chain.Identity().Key; err != nil || !bytes.Equal(raw, subject[:]) {
		return fmt.Errorf("certificate of %s: %w: it was issued to %s", id, content.ErrCorrupt, subject)
	}
	return nil
}

// check verifies the chain again. The caller holds mu.
func (a *asker) check(x *Exchange) {
	now := x.cfg.Now()
	identity, err := x.cfg.Verifier.Verify(a.chain, now)
	if err != nil && len(a.chain) > 0 {
		x.cfg.Log.Warn("peer is treated as a stranger", "peer", a.id, "err", err)
	}
	a.checkedAt, a.identity = now, identity
	if stranger := err != nil; stranger != a.stranger {
		from, to := memberBudget(), strangerBudget()
		if !stranger {
			from, to = to, from
		}
		a.stranger = stranger
		for c := range a.budget.wants { // what is open now stays counted
			a.budget.wants[c] += to.wants[c] - from.wants[c]
		}
		a.budget.indexes += to.indexes - from.indexes
		a.budget.small += to.small - from.small
	}
}

// peer returns who asks, checked within the last certificateCheck.
func (a *asker) peer(x *Exchange) (p Peer, stranger bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if age := x.cfg.Now().Sub(a.checkedAt); age > certificateCheck || age < 0 {
		a.check(x)
	}
	return Peer{a.id, a.identity}, a.stranger
}

// Stranger reports whether a peer has streams open here without a certificate that
// is good. Of a peer that has asked nothing yet it is false.
func (x *Exchange) Stranger(id peer.ID) bool {
	a := x.askers.find(id)
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stranger && !a.checkedAt.IsZero()
}

// Identity returns who a peer is that has streams open here, as its certificate
// says; false for a stranger and for one that has asked nothing yet.
func (x *Exchange) Identity(id peer.ID) (trust.Identity, bool) {
	a := x.askers.find(id)
	if a == nil {
		return trust.Identity{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.identity, !a.stranger
}

// spend calls f with the budget under its lock.
func (a *asker) spend(f func(*budget)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(&a.budget)
}

// remote returns whose stream it is.
func remote(s network.Stream) peer.ID { return s.Conn().RemotePeer() }
