package swarm

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// proveTimeout bounds the wait for a peer's proof: a connection, and a round trip.
	proveTimeout = 2 * time.Second
	// doubtFor is how long one that could not is not asked again, so that strangers
	// cost little. One that proves itself of its own accord is believed at once.
	doubtFor = 10 * time.Second
	// doubtsMax bounds those that are remembered; beyond it some are asked again.
	doubtsMax = 4096
	// provingMax bounds the proofs that are waited for, each by a stream or a search.
	provingMax = 128
)

// proofs says which peers are members of the mesh, and waits for them to prove it.
type proofs struct {
	proved func(peer.ID) bool
	prove  func(context.Context, peer.ID) bool

	mu      sync.Mutex // guards what follows
	waiting int
	doubts  map[peer.ID]time.Time // until when
}

// wait reports whether a peer is a member. One that has not proved it yet is given
// proveTimeout, and then nobody waits for it for a while.
func (p *proofs) wait(ctx context.Context, id peer.ID) bool {
	if p.proved(id) {
		return true
	}
	if p.prove == nil || !p.begin(id) {
		return false
	}
	late, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	ok := p.prove(late, id)
	p.end(id, ok || ctx.Err() != nil)
	return ok
}

// doubted reports whether a peer could not prove itself a while ago.
func (p *proofs) doubted(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.doubts[id])
}

// begin counts a wait, unless it would be in vain or one too many.
func (p *proofs) begin(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.doubts[id]) || p.waiting >= provingMax {
		return false
	}
	p.waiting++
	return true
}

// end counts the end of a wait, and remembers a peer that could not prove itself.
func (p *proofs) end(id peer.ID, forget bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting--
	if forget {
		delete(p.doubts, id)
		return
	}
	for other := range p.doubts {
		if len(p.doubts) < doubtsMax {
			break
		}
		delete(p.doubts, other)
	}
	p.doubts[id] = time.Now().Add(doubtFor)
}
