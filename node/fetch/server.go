package fetch

import (
	"context"
	"fmt"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/p2p/exchange"
)

// bitmapInterval is how often a member that follows our bitmap hears of what has
// come.
const bitmapInterval = 250 * time.Millisecond

var _ exchange.Server = (*Fetcher)(nil)

// Want answers a member's request: from the cache, and, when it asks this node to
// bring in what it lacks, by the same ladder that this node's own reads climb.
// The root's scope is checked before anything is looked at; refusal and absence
// are one answer.
func (f *Fetcher) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	rs := f.root(req.Root)
	if rs == nil || !from.Identity.MayRead(rs.head.Scope) {
		w.Unknown()
		return
	}
	how := request{priority: req.Priority, depth: plan.Received(f.isNear(from.ID), req.Passed), from: plan.Peer(from.ID), fromFarm: from.Identity.Farm, local: !req.Fetch}
	s := serving{f, rs, req, w, how}
	missing, err := s.fromCache(ctx)
	if err != nil || len(missing) == 0 {
		return
	}
	if !req.Fetch || !from.Identity.Role.IsMember() {
		w.Absent(missing...)
		return
	}
	s.bringIn(ctx, missing)
}

// serving is one request that is being answered.
type serving struct {
	f   *Fetcher
	rs  *rootState
	req exchange.Request
	w   exchange.Responder
	how request
}

// fromCache answers what is here and returns the rest. An error means that the
// asker is gone.
func (s serving) fromCache(ctx context.Context) (missing []uint64, err error) {
	var buf []byte
	for _, index := range s.req.Indexes {
		v, page, ok := s.held(ctx, index, buf)
		if !ok {
			missing = append(missing, index)
			continue
		}
		if err := s.w.Data(ctx, index, v, page); err != nil {
			return nil, err
		}
		s.f.metrics.served(len(v.Bytes()) + len(page))
		buf = v.Bytes()[:0]
	}
	return missing, nil
}

// held returns an object that the cache holds. Its name is looked up in what this
// node has of the map; nobody else is asked.
func (s serving) held(ctx context.Context, index uint64, buf []byte) (v content.Verified, page []byte, ok bool) {
	local := s.how
	local.local = true
	if s.req.Level == 0 {
		o, ok, err := s.f.chunk(ctx, s.rs, index, local)
		if err != nil || !ok {
			return v, nil, false
		}
		v, err = s.f.cfg.Cache.Get(o.id, buf)
		return v, nil, err == nil
	}
	p := content.Pos{Level: s.req.Level, Index: index}
	if !s.rs.head.Root.Contains(p) {
		return v, nil, false
	}
	n, err := s.f.node(ctx, s.rs, p, local)
	if err != nil || n == nil {
		return v, nil, false
	}
	return n.NodeBytes, n.PageBytes.Bytes(), true
}

// bringIn fetches what is missing and answers as it comes.
func (s serving) bringIn(ctx context.Context, missing []uint64) {
	s.how.local = false
	if s.w.Queued(len(missing)) != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go s.reportProgress(ctx)
	var objects []object
	for _, index := range missing {
		o, ok, err := s.locate(ctx, index)
		if err != nil || !ok {
			s.w.Absent(index)
			continue
		}
		objects = append(objects, o)
	}
	flights := s.f.join(s.rs, objects, s.how)
	for _, fl := range flights {
		v, err := fl.wait(ctx)
		if err != nil {
			if ctx.Err() != nil || s.w.Absent(fl.obj.pos.Index) != nil {
				return
			}
			continue
		}
		var page []byte
		if fl.node != nil {
			page = fl.node.PageBytes.Bytes()
		}
		if s.w.Data(ctx, fl.obj.pos.Index, v, page) != nil {
			return
		}
		s.f.metrics.served(len(v.Bytes()) + len(page))
	}
}

// locate names an object, which may take fetching the map above it.
func (s serving) locate(ctx context.Context, index uint64) (object, bool, error) {
	if s.req.Level == 0 {
		return s.f.chunk(ctx, s.rs, index, s.how)
	}
	p := content.Pos{Level: s.req.Level, Index: index}
	if !s.rs.head.Root.Contains(p) {
		return object{}, false, fmt.Errorf("%s: %w", p, content.ErrInvalid)
	}
	pair, ok, err := s.f.pair(ctx, s.rs, p, s.how)
	return object{pos: p, id: pair.Node.CID, page: pair.Page.CID, at: pair.Node.Location, pair: pair}, ok, err
}

func (s serving) reportProgress(ctx context.Context) {
	tick := time.NewTicker(exchange.ProgressInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s.w.Progress() != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Introduce takes the record of a root that a member is going to ask for.
func (f *Fetcher) Introduce(_ context.Context, from exchange.Peer, envelope []byte) error {
	if f.cfg.Introduce == nil || !from.Identity.Role.IsMember() {
		return fmt.Errorf("introduce: %w", content.ErrForbidden)
	}
	r, err := f.cfg.Introduce(envelope)
	if err != nil {
		return err
	}
	_, err = f.Learn(r)
	return err
}

// Bitmaps tells a member which chunks of a root are here, and those that come.
func (f *Fetcher) Bitmaps(ctx context.Context, from exchange.Peer, root content.CID, send func(*content.Bitmap) error) error {
	rs := f.root(root)
	if rs == nil || !from.Identity.MayRead(rs.head.Scope) {
		return content.ErrNotFound
	}
	tick := time.NewTicker(bitmapInterval)
	defer tick.Stop()
	var sent uint64
	for first := true; ; first = false {
		b := f.have(ctx, rs)
		if n := b.Len(); first || n != sent {
			if err := send(b); err != nil {
				return err
			}
			sent = n
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
