package images

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// FollowedMax bounds the names that a node follows: as many as one answer of a member
	// has room for.
	FollowedMax = 3000
	// listedFor is how old what is listed at the origin may be to be said again, for each
	// listPage names that were listed for it: a page is one request.
	listedFor = 5 * time.Second
	listPage  = 1000
	// listingsMax bounds the listings that are kept: whoever asks makes patterns up.
	listingsMax = 256
	// outsideRate and outsideBurst bound the answers to members that are not of this farm:
	// each may cost requests to the origin.
	outsideRate  = rate.Limit(2)
	outsideBurst = 20
)

// Match is a name that a pattern matches, as a member says. It proves nothing: who is told
// of a version looks the name up.
type Match struct {
	Name    string `cbor:"name"`
	Version uint64 `cbor:"version"`
}

// listings are what the origin listed lately, by what the names begin with.
type listings struct {
	flights singleflight.Group
	outside *rate.Limiter

	mu     sync.Mutex // guards lately
	lately map[string]listing
}

type listing struct {
	until time.Time
	names []listed
}

// listed is what a listing keeps of a record.
type listed struct {
	Match
	kind  content.Kind
	scope content.Scope
}

func listedOf(k records.Known) listed { return listed{Match{k.Name, k.Version}, k.Kind, k.Scope} }

func newListings() *listings {
	return &listings{outside: rate.NewLimiter(outsideRate, outsideBurst), lately: map[string]listing{}}
}

// Matches answers a member that follows names, or this node itself: with those that match,
// as far as it may read them, the first patterns' first, and no more than FollowedMax.
func (im *Images) Matches(ctx context.Context, from trust.Identity, patterns []follow.Pattern) (out []Match, err error) {
	switch {
	case from.Role == "" || len(patterns) > follow.PatternsMax:
		return nil, content.ErrNotFound
	case from.Farm != im.cfg.Signer.Identity().Farm && !im.listings.outside.AllowN(im.cfg.Now(), 1):
		return nil, fmt.Errorf("%w: too many ask", content.ErrUnavailable)
	}
	met, own := map[string]bool{}, from.Key == im.cfg.Signer.Identity().Key // who follows keeps what it has
	for _, p := range patterns {
		if err := p.Check(); err != nil {
			return nil, err
		}
		if p.Wild() && im.cfg.Readable() == nil && !own {
			return nil, fmt.Errorf("%w: names can't be listed here now", content.ErrUnavailable)
		}
		names, err := im.matching(ctx, p)
		if err != nil && !own {
			return nil, err
		}
		for _, n := range names {
			if len(out) < FollowedMax && !met[n.Name] && p.Match(n.kind, n.Name) && from.MayRead(n.scope) {
				met[n.Name] = true
				out = append(out, n.Match)
			}
		}
	}
	return out, nil
}

// matching returns names, those among them that match a pattern.
func (im *Images) matching(ctx context.Context, p follow.Pattern) ([]listed, error) {
	if !p.Wild() {
		k, err := im.cfg.Names.Lookup(ctx, content.KindImage, p.Glob, false)
		switch {
		case errors.Is(err, content.ErrNotFound):
			return nil, nil
		case err != nil:
			return nil, err
		}
		return []listed{listedOf(k)}, nil
	}
	im.listings.mu.Lock()
	l, ok := im.listings.lately[p.Begin()]
	im.listings.mu.Unlock()
	if ok && im.cfg.Now().Before(l.until) {
		return l.names, nil
	}
	ch := im.listings.flights.DoChan(p.Begin(), func() (any, error) { return im.list(context.WithoutCancel(ctx), p.Begin()), nil })
	select {
	case res := <-ch:
		return res.Val.([]listed), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// list lists the names that begin so, and keeps them for who asks next.
func (im *Images) list(ctx context.Context, begin string) []listed {
	l := listing{until: im.cfg.Now()}
	for after, more := "", true; more; {
		var page []records.Known
		page, more = im.cfg.Names.List(ctx, content.KindImage, begin, after, listPage)
		for _, k := range page {
			l.names = append(l.names, listedOf(k))
			after = k.Name
		}
		more = more && len(page) > 0
		l.until = l.until.Add(listedFor)
	}
	im.listings.mu.Lock()
	defer im.listings.mu.Unlock()
	if len(im.listings.lately) >= listingsMax {
		clear(im.listings.lately)
	}
	im.listings.lately[begin] = l
	return l.names
}
