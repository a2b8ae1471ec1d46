package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/scratch"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/wire"
)

// Failures of a peer, beside the categories of package content. Each wraps
// content.ErrUnavailable: another peer may have the bytes.
var (
	// ErrStalled: the peer showed no sign of progress for StallTimeout.
	ErrStalled = fmt.Errorf("stalled: %w", content.ErrUnavailable)
	// ErrDisconnected: the connection was lost, or could not be made.
	ErrDisconnected = fmt.Errorf("disconnected: %w", content.ErrUnavailable)
	// ErrBusy: the peer's budget for us is used up.
	ErrBusy = fmt.Errorf("busy: %w", content.ErrUnavailable)
	// ErrViolation: the peer broke the protocol; its stream was closed and the
	// peer reported through Config.OnViolation.
	ErrViolation = fmt.Errorf("protocol violation: %w", errors.Join(content.ErrUnavailable, content.ErrCorrupt))
)

// What is asked and answered is the same here and on the wire.
type (
	// Request asks for objects under one root.
	Request  = wire.Want
	Trace    = wire.Trace
	Priority = wire.Priority
	Absent   = wire.Absent
	Queued   = wire.Queued
	Progress = wire.Progress
	Refer    = wire.Refer
	Unknown  = wire.Unknown
)

// The priorities, the most urgent last.
const (
	PrioritySeed      = wire.PrioritySeed
	PriorityPrefetch  = wire.PriorityPrefetch
	PriorityReadahead = wire.PriorityReadahead
	PriorityGuest     = wire.PriorityGuest
)

// Peer is who asks.
type Peer struct {
	ID peer.ID
	// Identity is what the peer's certificate says; zero for a stranger.
	Identity trust.Identity
}

// Reply is one answer to a Request: *Data, Absent, Queued, Progress, Refer or
// Unknown. Each index of the request gets one Data or is in one Absent, in any
// order, unless Refer or Unknown ends the request first.
type Reply any

// Data is the bytes of one object, unverified.
type Data struct {
	Index uint64
	// Body is the chunk or the encoded map node. It is valid until the callback
	// returns, unless Take was called.
	Body []byte
	// Page is the locator page of a map node, empty for a chunk. Same lifetime.
	Page []byte
	// Spare is what the peer says it has left for who asks next.
	Spare wire.Spare

	taken bool
	pool  *scratch.Pool
	lent  [2]*[]byte // what Body and Page lie in
}

// Take makes the Data the caller's, for good or until it calls Free.
func (d *Data) Take() { d.taken = true }

// Free gives the memory back, once nobody looks at Body and Page any more.
func (d *Data) Free() {
	for _, b := range d.lent {
		d.pool.Put(b)
	}
}

// Server answers requests for content. Its methods are called concurrently.
type Server interface {
	// Want answers req through w: Unknown alike for a root that is not known here and for
	// one whose scope does not admit from, on the same path. It is called with a turn (see
	// Responder). Indexes that are unanswered when it returns are answered as absent. ctx
	// ends when the asker cancels or is gone.
	Want(ctx context.Context, from Peer, req Request, w Responder)
	// Introduce takes the envelope, unverified, of a record whose root will be asked for.
	Introduce(ctx context.Context, from Peer, envelope []byte) error
	// Bitmaps sends the set of chunks of root held here, then additions to it,
	// until ctx ends. send keeps nothing. A root that is unknown, or whose scope
	// does not admit from, is ErrNotFound.
	Bitmaps(ctx context.Context, from Peer, root content.CID, send func(*content.Bitmap) error) error
}

// Answerer answers small calls, such as "resolve" or "commit". An error that
// wraps a sentinel of package content does so at the caller too.
type Answerer interface {
	Call(ctx context.Context, from Peer, method string, body []byte) ([]byte, error)
}

// Object is what answers an index.
type Object struct {
	Body []byte
	Page []byte // the locator page of a map node, else nil
	// Dense says that the body does not get smaller, as its publisher found.
	Dense bool
}

// Responder answers one request. A Want holds a turn, the right to read and send
// one object, given by priority and then fairly among peers; so a server reads
// no more than can be sent soon. An error means that the asker is gone or does
// not want the rest: the server returns. Safe for concurrent use.
type Responder interface {
	// Data answers one index. It writes the bytes, which are the caller's again then, and
	// waits for the turn of the next. The asker verifies body and page, and blames this
	// node: they were verified here before, though perhaps not for this answer.
	Data(ctx context.Context, index uint64, o Object) error
	// Room lends memory, empty, for an object of up to size bytes. A body that begins where
	// it does goes out in one piece with what its frame begins with. It is lent until Queued
	// or the end of Want; the next Room may lend the same again.
	Room(size int) []byte
	// Absent answers indexes that the server has not and will not bring in.
	Absent(indexes ...uint64) error
	// Nowhere is Absent by the word of the origin.
	Nowhere(indexes ...uint64) error
	// Queued gives the turn back until the next Data and tells the asker why:
	// call it before waiting for anything, such as the origin.
	Queued(position int) error
	// Progress tells the asker that waiting is not in vain. A request without a
	// reply for StallTimeout fails at the asker; once a ProgressInterval is enough.
	Progress() error
	// Refer ends the request: ask that peer for the rest.
	Refer(to peer.ID) error
	// Unknown ends the request.
	Unknown() error
}
