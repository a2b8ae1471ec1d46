package images

import (
	"context"
	"slices"
	"strings"

	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// lastPrefix begins the names under which the last copies are pinned of what is followed
	// and has no room, and lastShare is what the cache may take of them and all that is
	// followed, in percent.
	lastPrefix = "@last "
	lastShare  = 90
)

// keepLast keeps what is here of names that there is no room for, as a guest has read it,
// while nobody else of the farm has all of it: the last copy. It looks at one name a time,
// in turn, by what members show.
func (f *follower) keepLast(ctx context.Context) error {
	f.mu.Lock()
	all := f.state.Standings()
	f.mu.Unlock()
	var without []string
	for _, s := range all {
		if s.State == follow.NoRoom {
			without = append(without, s.Name)
		}
	}
	cache := f.im.cfg.Cache
	for _, pin := range cache.Pinned() {
		if name, ok := strings.CutPrefix(pin, lastPrefix); ok && !slices.Contains(without, name) {
			if err := cache.Unpin(pin); err != nil {
				return err
			}
		}
	}
	if len(without) == 0 {
		return nil
	}
	f.turn++
	return f.keepLastOf(ctx, without[f.turn%len(without)])
}

func (f *follower) keepLastOf(ctx context.Context, name string) error {
	cfg := &f.im.cfg
	i, err := f.im.Holders(ctx, name)
	if err != nil {
		return err
	}
	if !isLast(i, cfg.Self, cfg.Signer.Identity().Farm) {
		return cfg.Cache.Unpin(lastPrefix + name)
	}
	k, ok := cfg.Names.Held(content.KindImage, name)
	if !ok || k.Root != i.CID {
		return nil
	}
	ids, err := f.im.all(ctx, k)
	if err != nil {
		return err
	}
	ids = slices.DeleteFunc(ids, func(id content.CID) bool { return !cfg.Cache.Has(id) })
	return cfg.Cache.Pin(lastPrefix+name, cfg.Cache.Stats().Limit/100*lastShare, slices.Values(ids))
}

// isLast reports whether a node has some of an image that no other of its farm has whole;
// of several that do the first one by ID keeps it, as each might rely on the others.
func isLast(i Image, self, farm string) bool {
	whole := func(h Holder) bool { return h.Farm == farm && h.Chunks >= i.Chunks }
	mine := slices.IndexFunc(i.Holders, func(h Holder) bool { return h.ID == self })
	return mine >= 0 && !slices.ContainsFunc(i.Holders, func(h Holder) bool { return h.ID != self && whole(h) && (h.ID < self || !whole(i.Holders[mine])) })
}
