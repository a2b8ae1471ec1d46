package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/have"
	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/why"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/wire"
)

const (
	// bitmapInterval is how often a member that follows our bitmap hears of what has
	// come.
	bitmapInterval = 250 * time.Millisecond
	// loadMax bounds the bytes that are brought in for a member at once and that it has
	// not taken: twice what one that warms an image has under way. They are in memory
	// for as long as it likes.
	loadMax = 16 << 20
	// partMax is what one request has brought in at a time: a run that compresses well.
	partMax = 4 << 20
)

// loadKey is a member by what it asks for: guests wait for no bulk, nor requests for
// those of another depth, as flights don't.
type loadKey struct {
	from  plan.Peer
	guest bool
	depth plan.Depth
}

var _ exchange.Server = (*Fetcher)(nil)

// Want answers a member's request: from the cache, and, when it asks this node to
// bring in what it lacks, by the same ladder that this node's own reads climb.
// The root's scope is checked before anything is looked at; refusal and absence
// are one answer.
func (f *Fetcher) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	rs, reach := f.served(req.Root, from)
	if rs == nil {
		w.Unknown()
		return
	}
	member := from.Identity.Role.IsMember()
	near := member && from.Identity.Farm == f.cfg.Identity.Farm
	s := &serving{f: f, rs: rs, req: req, w: w, how: request{
		priority: req.Priority, depth: plan.Received(near, req.Passed),
		from: plan.Peer(from.ID), fromFarm: from.Identity.Farm, reach: reach, noOrigin: req.NoOrigin,
	}}
	if member && req.Trace != (exchange.Trace{}) {
		s.how.span, s.Began = f.cfg.Spans.Begin("serve", req.Trace), time.Now()
	}
	end, referred := s.crowd(ctx, near, from.Identity.Role == "")
	if referred {
		return
	}
	defer func() {
		end(s.left == 0)
		f.cfg.Served(from.ID, rs.id, s.sent)
		s.how.span.End(s.Of(why.Read{At: s.Began, Took: time.Since(s.Began).Seconds(), Length: int(s.sent)}))
	}()
	missing, err := s.fromCache(ctx)
	if err != nil || len(missing) == 0 {
		return
	}
	if !req.Fetch || !member || f.cfg.HoldsOnly {
		s.lacks(near, missing)
		return
	}
	s.bringIn(ctx, missing)
}

// serving is one request that is being answered.
type serving struct {
	f    *Fetcher
	rs   *rootState
	req  exchange.Request
	w    exchange.Responder
	how  request
	left int   // not sent
	sent int64 // bytes
	run  pack.Run
	why.Trail
}

// lacks answers that this node hasn't got something, or refers a member of this farm that
// takes itself for the lead, and does not see it, to it.
func (s *serving) lacks(near bool, missing []uint64) {
	if near && s.run.Pack != "" {
		var lead plan.Peer
		var ok bool
		s.f.Think(func(m *plan.Member) { lead, ok = m.Better(object.RunKey(s.run), s.how.from, s.f.cfg.Now()) })
		if ok {
			s.w.Refer(peer.ID(lead))
			return
		}
	}
	s.w.Absent(missing...)
}

// crowdKey names those that a run is sent to: the members of this farm are
// referred to each other, and so are those of other farms. Where a root's run lies
// its record says alone, so it is another one for each root.
type crowdKey struct {
	root  content.CID
	run   pack.Run
	reach cache.Reach
}

// crowd enters the request among those for the same run, or refers the asker to a
// member that has the run already. Strangers are none, and would be asked nothing. end
// is called when it was answered.
func (s *serving) crowd(ctx context.Context, near, stranger bool) (end func(whole bool), referred bool) {
	s.left = len(s.req.Indexes)
	none := func(bool) {}
	if s.req.Level > 0 || stranger {
		return none, false
	}
	o, ok, err := s.f.chunk(ctx, s.rs, s.req.Indexes[0], s.here())
	if err != nil || !ok {
		return none, false
	}
	s.run = o.At.Run()
	key, crowd := crowdKey{s.rs.id, s.run, s.how.reach}, s.f.crowds[near]
	request := crowds.Request{Asker: s.how.from, HasTime: s.how.priority <= exchange.PriorityPrefetch, Held: s.f.cfg.Cache.HasFor(o.ID, s.how.reach)}
	if to := crowd.Await(ctx, &s.f.mu, key, request, func() { _ = s.w.Queued(1) }); to != "" {
		s.f.tally.Referrals.Inc()
		s.w.Refer(peer.ID(to))
		return none, true
	}
	return func(whole bool) {
		s.f.mu.Lock()
		defer s.f.mu.Unlock()
		crowd.End(key, s.how.from, whole)
	}, false
}

func (s *serving) send(ctx context.Context, index uint64, o exchange.Object) error {
	if err := s.w.Data(ctx, index, o); err != nil {
		return err
	}
	size := len(o.Body) + len(o.Page)
	s.left--
	s.sent += int64(size)
	s.f.tally.Served.Add(float64(size))
	return nil
}

// fromCache answers what is here and returns the rest. An error means that the
// asker is gone.
func (s *serving) fromCache(ctx context.Context) (missing []uint64, err error) {
	for _, index := range s.req.Indexes {
		o, ok := s.held(ctx, index)
		if !ok {
			missing = append(missing, index)
			continue
		}
		if err := s.send(ctx, index, o); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// here is the request for what is on this node and may go to the asker.
func (s *serving) here() request {
	how := s.how
	how.local = true
	return how
}

// held returns an object that the cache holds and that goes as far as the root. Its
// name is looked up in what this node has of the map; nobody else is asked. A map node
// has been decoded as the root's, with its page.
func (s *serving) held(ctx context.Context, index uint64) (held exchange.Object, ok bool) {
	o, ok, err := s.locate(ctx, index, s.here())
	if err != nil || !ok || !s.f.cfg.Cache.HasFor(o.ID, s.how.reach) {
		return held, false
	}
	if s.req.Level > 0 {
		n, err := s.f.node(ctx, s.rs, o.Pos, s.here())
		if err != nil || n == nil || n.ID != o.ID || n.PageID != o.Page {
			return held, false
		}
	}
	var room []byte
	if s.req.Level == 0 {
		room = s.w.Room(s.rs.shape.ChunkMax)
	}
	held.Dense = o.Dense()
	if held.Body, err = s.f.cfg.Cache.ReadFor(o.ID, s.how.reach, room); err != nil || s.req.Level == 0 {
		return held, err == nil
	}
	held.Page, err = s.f.cfg.Cache.ReadFor(o.Page, s.how.reach, nil)
	return held, err == nil
}

// bringIn fetches what is missing and answers as it comes, a part at a time.
func (s *serving) bringIn(ctx context.Context, missing []uint64) {
	if s.w.Queued(len(missing)) != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer cancel()
	reporting.Go(func() { s.reportProgress(ctx) })
	size := s.rs.shape.ChunkMax
	if s.req.Level > 0 {
		size = content.NodeSizeMax + wire.PageSizeMax
	}
	for part := range slices.Chunk(missing, max(1, partMax/size)) {
		give, err := s.f.loads.Take(ctx, loadKey{s.how.from, s.how.priority == exchange.PriorityGuest, s.how.depth}, int64(len(part)*size))
		if err != nil {
			return
		}
		err = s.bringPart(ctx, part)
		give()
		if err != nil {
			return
		}
	}
}

// bringPart is bringIn of some. An error means that the asker is gone.
func (s *serving) bringPart(ctx context.Context, part []uint64) error {
	var objects []object.Object
	for _, index := range part {
		o, ok, err := s.locate(ctx, index, s.how)
		if err != nil || !ok {
			s.absent(index, err)
			continue
		}
		objects = append(objects, o)
	}
	flights := s.f.join(s.rs, objects, s.how)
	for i, fl := range flights {
		s.Tried(fl.job.trace)
		v, err := fl.wait(ctx)
		if err != nil {
			err = s.absent(objects[i].Pos.Index, err)
		} else {
			err = s.send(ctx, objects[i].Pos.Index, exchange.Object{Body: v.Bytes(), Page: fl.page.Bytes(), Dense: objects[i].Dense()})
		}
		if err != nil {
			s.f.leave(flights[i+1:]...)
			return err
		}
	}
	return nil
}

// absent answers what could not be had, and says so where the origin has told this very
// node that it is nowhere.
func (s *serving) absent(index uint64, why error) error {
	if s.f.cfg.Origin() != nil && (errors.Is(why, content.ErrNotFound) || errors.Is(why, content.ErrCorrupt)) {
		return s.w.Nowhere(index)
	}
	return s.w.Absent(index)
}

// locate names an object, which may take fetching the map above it.
func (s *serving) locate(ctx context.Context, index uint64, how request) (object.Object, bool, error) {
	if s.req.Level == 0 {
		return s.f.chunk(ctx, s.rs, index, how)
	}
	p := content.Pos{Level: s.req.Level, Index: index}
	if !s.rs.shape.Contains(p) {
		return object.Object{}, false, fmt.Errorf("%s: %w", p, content.ErrInvalid)
	}
	pair, ok, err := s.f.pair(ctx, s.rs, p, how)
	return object.Node(p, pair, max(how.reach, s.rs.reach())), ok, err
}

func (s *serving) reportProgress(ctx context.Context) {
	tick := time.Tick(exchange.ProgressInterval)
	for {
		select {
		case <-tick:
			if s.w.Progress() != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Bitmaps tells a member which chunks of a root are here, and those that come; one of
// another farm, those of all this farm, which Want brings in. What is evicted is not taken
// back: who asks for it learns that.
func (f *Fetcher) Bitmaps(ctx context.Context, from exchange.Peer, root content.CID, send func(*content.Bitmap) error) error {
	rs, reach := f.served(root, from)
	if rs == nil {
		return content.ErrNotFound
	}
	f.bringMap(ctx, rs)
	f.refresh(ctx, rs)
	var told, near have.Follower
	for f.cfg.Serves() && rs.reach() == reach && slices.Contains(f.heads(root), rs) {
		b, changed := rs.here.Next(&told)
		var nearChanged <-chan struct{}
		if from.Identity.Role.IsMember() && from.Identity.Farm != f.cfg.Identity.Farm && !f.cfg.HoldsOnly {
			var more *content.Bitmap
			if more, nearChanged = rs.near.Next(&near); b == nil {
				b = more
			} else if more != nil {
				b.Union(more)
			}
		}
		if b != nil {
			if err := send(b); err != nil {
				return err
			}
		}
		select {
		case <-time.After(bitmapInterval): // additions go out together
		case <-ctx.Done():
			return nil
		}
		if b != nil {
			continue
		}
		select {
		case <-changed:
		case <-nearChanged:
		case <-ctx.Done():
			return nil
		}
	}
	return content.ErrNotFound // its record has ended, or another counts for more, or nothing is sent
}

// bringMap brings in the map of a root that this node was told of and whose
// ancestor it holds: then its bitmap shows what the two share.
func (f *Fetcher) bringMap(ctx context.Context, rs *rootState) {
	held := false
	for _, id := range rs.lineage {
		older := f.best(id, "", func(*rootState) bool { return true })
		held = held || older != nil && f.holds(ctx, older) > 0
	}
	rs.mu.Lock()
	begin := held && !rs.mapping && !f.cfg.HoldsOnly
	rs.mapping = rs.mapping || begin
	rs.mu.Unlock()
	if !begin {
		return
	}
	f.start(func() {
		nodes, failed := rs.scanMax(), error(nil)
		f.walk(f.ctx, rs, request{priority: exchange.PriorityPrefetch, reach: rs.reach()}, func(_ content.Pos, _ *mapNode, err error) bool {
			nodes--
			failed = err
			return err == nil && nodes > 0
		})
		if failed == nil {
			f.rescan(f.ctx, rs)
			return
		}
		f.cfg.Log.Debug("the map of a younger root can't be had", "root", rs.id, "err", failed)
		rs.mu.Lock()
		defer rs.mu.Unlock()
		rs.mapping = false // who asks next has it tried again
	})
}
