package records

import (
	"context"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

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
			case err != nil || !ok || k.Tombstone:
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
			k, err = n.listed(r, asked)
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

// listed is tell of one of many.
func (n *Names) listed(r catalog.Record, asked time.Time) (Known, error) {
	k, err := n.describe(r)
	if err != nil {
		return Known{}, err
	}
	_, e := n.apply(key(r.Kind, r.Name), n.telling(k, asked))
	return e.answer(), nil
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

// OfRoot returns a record that stands for a root under a scope now.
func (n *Names) OfRoot(root content.CID, scope content.Scope) (Known, bool) {
	for _, id := range n.index.linked(rootKey{root, scope}.link(), 1) {
		n.mu.Lock()
		e := n.entry(id)
		n.mu.Unlock()
		for _, k := range []*Known{e.said, e.heard} {
			if k != nil && k.Head != nil && k.Root == root && k.Scope == scope {
				return *k, true
			}
		}
	}
	return Known{}, false
}
