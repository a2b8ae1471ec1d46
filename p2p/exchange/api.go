package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
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

// Priority orders requests at both ends of a transfer.
type Priority uint8

// The priorities, the most urgent last.
const (
	// PrioritySeed serves others' background copies; strangers get no more.
	PrioritySeed Priority = iota
	// PriorityPrefetch warms content that nobody waits for yet.
	PriorityPrefetch
	// PriorityReadahead is what a guest will probably read next.
	PriorityReadahead
	// PriorityGuest has a guest blocked on it.
	PriorityGuest

	priorities = int(PriorityGuest) + 1
)

// Peer is who asks.
type Peer struct {
	ID peer.ID
	// Identity is what the peer's certificate says; zero for a stranger, who may
	// read public content only.
	Identity trust.Identity
}

// Request asks for objects under one root.
type Request struct {
	Root content.CID
	// Level is 0 for chunks, 1 and above for map nodes with their locator pages.
	Level int
	// Indexes are distinct and rising, at most wire.IndexesMax.
	Indexes  []uint64
	Priority Priority
	// Fetch asks the peer to bring in what it lacks, as the lead of a run does.
	Fetch bool
	// Passed says that the request was already passed on once: the peer must not
	// pass it on again.
	Passed bool
}

// Reply is one answer to a Request: *Data, Absent, Queued, Progress, Refer or
// Unknown. Each index of the request gets one Data or is in one Absent, in any
// order, unless Refer or Unknown ends the request first.
type Reply interface{ reply() }

// Data is the bytes of one object, unverified.
type Data struct {
	Index uint64
	// Body is the chunk or the encoded map node. It is valid until the callback
	// returns, unless Take was called.
	Body []byte
	// Page is the locator page of a map node, empty for a chunk. Same lifetime.
	Page []byte

	taken bool
}

// Take makes Body and Page the caller's for good.
func (d *Data) Take() (body, page []byte) {
	d.taken = true
	return d.Body, d.Page
}

// Absent says that the peer has none of these objects for the asker; Nowhere that the
// origin has told it that they are gone, or damaged.
type Absent struct {
	Indexes []uint64
	Nowhere bool
}

// Queued says that the request waits at the peer, behind Position others.
type Queued struct{ Position int }

// Progress says that the peer works on the request.
type Progress struct{}

// Refer names a peer that has what is still missing, and ends the request.
type Refer struct{ Peer peer.ID }

// Unknown ends the request: the peer does not know the root, or its scope does
// not admit the asker, which are one answer. An asker that has the record's
// envelope sends it with Introduce and asks again.
type Unknown struct{}

func (*Data) reply()    {}
func (Absent) reply()   {}
func (Queued) reply()   {}
func (Progress) reply() {}
func (Refer) reply()    {}
func (Unknown) reply()  {}

// Server answers requests for content. Its methods are called concurrently.
type Server interface {
	// Want answers req through w. It answers Unknown alike for a root that is not
	// known here and for one whose scope does not admit from, on the same path.
	// It is called with a turn (see Responder). Indexes that are unanswered when
	// it returns are answered as absent. ctx ends when the asker cancels or is
	// gone.
	Want(ctx context.Context, from Peer, req Request, w Responder)
	// Introduce takes the envelope of a record whose root is going to be asked
	// for; the bytes are unverified.
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

// Responder answers one request. A Want holds a turn, the right to read and send
// one object, given by priority and then fairly among peers; so a server reads
// no more than can be sent soon. An error means that the asker is gone or does
// not want the rest: the server returns. Safe for concurrent use.
type Responder interface {
	// Data answers one index. It writes the bytes, which are the caller's again
	// when it returns, then waits for the turn of the next index. page is the
	// locator page of a map node, else nil.
	Data(ctx context.Context, index uint64, v content.Verified, page []byte) error
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
