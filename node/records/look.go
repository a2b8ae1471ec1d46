package records

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// lookupTimeout bounds one look for a record at the origin, whatever the store
	// does, and membersTimeout another at members when it says nothing: those who are
	// there answer from memory.
	lookupTimeout  = 3 * time.Second
	membersTimeout = 1500 * time.Millisecond
	// coldTimeout bounds the question to members whether what the origin shows of a
	// name that was never seen here is the latest.
	coldTimeout = 300 * time.Millisecond
)

// shared runs fn once for all that ask for the same at the same time: it outlives the
// caller that began it.
func shared[T any](ctx context.Context, flights *singleflight.Group, id string, fn func(context.Context) (T, error)) (v T, err error) {
	ch := flights.DoChan(id, func() (any, error) { return fn(context.WithoutCancel(ctx)) })
	select {
	case res := <-ch:
		v, _ = res.Val.(T)
		return v, res.Err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// look asks the origin for what it has after since, or else members. lost is told when
// the origin fails.
func (n *Names) look(ctx context.Context, kind content.Kind, name string, since time.Time, lost func(error)) (Known, error) {
	return shared(ctx, &n.flights, "look "+key(kind, name), func(ctx context.Context) (Known, error) {
		c := n.cfg.Reader()
		if c == nil {
			return n.away(ctx, kind, name, fmt.Errorf("%w: this node has no origin, or it does not answer", content.ErrUnavailable))
		}
		k, err := n.read(ctx, c, kind, name, since)
		if err == nil || errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrForbidden) || errors.Is(err, content.ErrInvalid) {
			return k, err
		}
		lost(err)
		return n.away(ctx, kind, name, err)
	})
}

// read takes what the origin says. What it has said since then will do.
func (n *Names) read(ctx context.Context, c *catalog.Catalog, kind content.Kind, name string, since time.Time) (Known, error) {
	return shared(ctx, &n.flights, "read "+key(kind, name), func(ctx context.Context) (Known, error) {
		switch k, _, ok := n.ownWord(kind, name, since); {
		case ok && k.Version == 0:
			return k, notFound(kind, name)
		case ok:
			return k, nil
		}
		s, err := n.atOrigin(ctx, c, kind, name)
		switch {
		case err == nil && n.wasThere(key(kind, name)):
			return n.tell(s.record, s.asked, n.change)
		case err == nil:
			return n.cold(ctx, c, s)
		case errors.Is(err, content.ErrNotFound):
			n.gone(key(kind, name), s.asked)
		}
		return Known{}, err
	})
}

// wasThere reports whether this node has seen the name at the origin itself: what others
// have seen there is not compared with what the origin shows, but by asking them.
func (n *Names) wasThere(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.entry(id)
	return e.said != nil || e.taken != nil
}

// ownWord returns what the origin has said to this node after since, and when: the zero
// Known for absence. A record that is in doubt is nothing to give a word on.
func (n *Names) ownWord(kind content.Kind, name string, since time.Time) (k Known, at time.Time, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := key(kind, name)
	if e := n.entry(id); !e.isEmpty() {
		k = e.answer()
		return k, k.read, k.Confirmed && k.Doubt == "" && k.read.After(since)
	}
	at = n.absent[id]
	return k, at, at.After(since)
}

// sight is what the origin answered, and when it was asked.
type sight struct {
	record catalog.Record
	asked  time.Time
}

// atOrigin asks the origin, which may be there and say nothing, not even that it is
// told to stop: such a read is left alone, and the next look waits for it as well
// instead of beginning another.
func (n *Names) atOrigin(ctx context.Context, c *catalog.Catalog, kind content.Kind, name string) (sight, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	s, err := shared(ctx, &n.gets, key(kind, name), func(ctx context.Context) (sight, error) {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		asked := n.cfg.Now()
		r, err := c.Get(ctx, kind, name)
		return sight{r, asked}, err
	})
	switch {
	case errors.Is(err, content.ErrNotFound):
		err = notFound(kind, name)
	case err != nil && ctx.Err() != nil:
		err = fmt.Errorf("%s %q: %w: no answer within %s", kind, name, content.ErrUnavailable, lookupTimeout)
	}
	return s, err
}

// cold takes what the origin shows of a name that was never seen here, where only
// members can tell whether the bucket was rolled back. One that has seen a later record
// there is believed before the bucket, unconfirmed, until the bucket shows another one.
func (n *Names) cold(ctx context.Context, c *catalog.Catalog, s sight) (Known, error) {
	k, err := n.tell(s.record, s.asked, n.change)
	if err != nil || n.cfg.Ask == nil {
		return k, err
	}
	newest, ok := n.newerThan(ctx, k)
	if !ok {
		return k, nil
	}
	// It may have been written since; who looks twice needs no member to tell.
	again, err := n.atOrigin(ctx, c, k.Kind, k.Name)
	if err != nil {
		return k, nil
	}
	if k, err = n.tell(again.record, again.asked, n.change); err != nil || k.Version >= newest.Version {
		return k, err
	}
	newest.Confirmed, newest.against = false, k.Commit
	newest.Doubt = fmt.Sprintf("the bucket shows version %d, and members saw version %d there: was it rolled back?", k.Version, newest.Version)
	return n.change(key(k.Kind, k.Name), func(e entry) entry { return e.hears(newest, n.cfg.Now()) }).answer(), nil
}

// newerThan returns the latest record that members saw at the origin, if it is later
// than that one, and may stand in its place.
func (n *Names) newerThan(ctx context.Context, k Known) (Known, bool) {
	ctx, cancel := context.WithTimeout(ctx, coldTimeout)
	defer cancel()
	var newest Known
	for _, w := range n.askMembers(ctx, Question{Kind: k.Kind, Name: k.Name}, confirmFarms) {
		if w.known.Version > max(k.Version, newest.Version) && k.OpenTo(w.known.Envelope) {
			newest = w.known
		}
	}
	return newest, newest.Version > 0
}

// away asks members, as the origin does not answer.
func (n *Names) away(ctx context.Context, kind content.Kind, name string, cause error) (Known, error) {
	ctx, cancel := context.WithTimeout(ctx, membersTimeout)
	defer cancel()
	best, ok := choose(n.askMembers(ctx, Question{Kind: kind, Name: name}, membersAsked), n.farm(), n.cfg.Now())
	e := n.change(key(kind, name), func(e entry) entry {
		if e = e.unanswered(n.cfg.Now()); ok {
			e = e.hears(best, n.cfg.Now())
		}
		return e
	})
	if e.isEmpty() {
		return Known{}, fmt.Errorf("%s %q: %w: no member that was asked knows it, and the origin did not answer: %w", kind, name, content.ErrUnavailable, cause)
	}
	return e.answer(), nil
}

// List returns up to limit records of a namespace whose names begin with a prefix and come
// behind after, which is one of them or "", in the order of their Segments, deleted ones left out, and whether there are more: those that the origin
// lists, and unconfirmed those that this node knows and the origin does not tell of,
// all of them while it is away. Records that have not changed are not read again.
func (n *Names) List(ctx context.Context, space content.Kind, begin, after string, limit int) (page []Known, more bool) {
	there := map[string]bool{} // what the origin lists, and whether it can be read
	last, more := n.listAtOrigin(ctx, listing{space, begin, after, limit}, there)
	start := content.Segment(begin)
	for behind := strings.TrimPrefix(content.Segment(after), start); ; {
		rests := n.index.after(string(space.Space())+"/"+start, behind, namesAtOnce)
		for _, rest := range rests {
			segment := start + rest
			name, err := content.NameOf(segment)
			k, ok := n.Held(space, name)
			switch {
			case more && segment > content.Segment(last):
				return page, true
			case err != nil || !ok || k.Tombstone || name == after:
				continue
			case len(page) == limit:
				return page, true
			}
			k.Confirmed = k.Confirmed && there[name]
			page = append(page, k)
		}
		if len(rests) < namesAtOnce {
			return page, more
		}
		behind = rests[len(rests)-1]
	}
}

// listing is what List is asked for.
type listing struct {
	space        content.Kind
	begin, after string
	limit        int
}

// listAtOrigin takes what the origin lists until as many records are there as are asked for. It
// returns the last name that it came to, and whether the origin has more.
func (n *Names) listAtOrigin(ctx context.Context, l listing, there map[string]bool) (last string, more bool) {
	c := n.cfg.Reader()
	if c == nil {
		return "", false
	}
	asked, live := n.cfg.Now(), 0
	defer n.sync()
	for r, err := range c.List(ctx, l.space, l.begin, l.after) {
		if live == l.limit {
			return last, true
		}
		var k Known
		if err == nil {
			k, err = n.tell(r, asked, n.apply)
		}
		if r.Name != "" {
			there[r.Name], last = err == nil, r.Name
		}
		if err != nil {
			n.cfg.Lost(err)
			n.cfg.Log.Warn("names can't be listed in full", "space", l.space, "name", r.Name, "err", err)
		}
		if err == nil && !k.Tombstone {
			live++
		}
	}
	return last, false
}

// TagsOf returns the tags that were set on an image, as far as this node knows them, at
// most namesAtOnce.
func (n *Names) TagsOf(image string) (out []string) {
	for _, id := range n.index.linked(targetLink(image), namesAtOnce) {
		if name, err := content.NameOf(strings.TrimPrefix(id, string(content.KindImage.Space())+"/")); err == nil {
			out = append(out, name)
		}
	}
	return out
}

// imagesMax bounds the images of one root that are told of.
const imagesMax = 16

// OfRoot returns a record that stands for a root under a scope now.
func (n *Names) OfRoot(root content.CID, scope content.Scope) (Known, bool) {
	for k := range n.ofRoot(root, scope, 1) {
		return k, true
	}
	return Known{}, false
}

// ImagesOf yields images, trees and tags that stand for a root under a scope now, imagesMax at most.
func (n *Names) ImagesOf(root content.CID, scope content.Scope) iter.Seq[Known] {
	return func(yield func(Known) bool) {
		for k := range n.ofRoot(root, scope, imagesMax) { // in the order of their spaces, of which that of images is the first
			if k.Kind.Space() == content.KindImage.Space() && !yield(k) {
				return
			}
		}
	}
}

func (n *Names) ofRoot(root content.CID, scope content.Scope, limit int) iter.Seq[Known] {
	return func(yield func(Known) bool) {
		for _, id := range n.index.linked(rootKey{root, scope}.link(), limit) {
			n.mu.Lock()
			e := n.entry(id)
			n.mu.Unlock()
			for _, k := range []*Known{e.said, e.heard} {
				if k != nil && k.Head != nil && k.Root == root && k.Scope == scope {
					if !yield(*k) {
						return
					}
					break
				}
			}
		}
	}
}
