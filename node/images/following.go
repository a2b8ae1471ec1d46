package images

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// followEvery is how often a node asks what the names that it follows stand for: what
	// it hears is at most as old as a lead's listing, and so a change is seen within 8 s.
	followEvery = 3 * time.Second
	// looksAtOnce is how many names are looked up at once of those that have changed.
	looksAtOnce = 16
	// goneAfter is how long members must not speak of a name for a seed to take it for deleted:
	// it is not told of that, as of nothing that is not public.
	goneAfter = 24 * time.Hour
	// keepShare is how much of the cache what is followed may take, in percent: the rest is
	// for what guests read.
	keepShare = 80
	// pinPrefix begins the names under which what is followed is pinned, which no image has.
	pinPrefix = "@"
)

// Followed says how a node stands with the names that it follows.
type Followed struct {
	Patterns []string             `json:"patterns,omitempty" doc:"what --follow says"`
	Missing  []string             `json:"missing,omitempty" doc:"those of them that no name matches, as far as is known"`
	Names    int                  `json:"names"`
	States   map[follow.Phase]int `json:"states,omitempty" doc:"how many names are how far"`
	Behind   []follow.Standing    `json:"behind,omitempty" doc:"names that are not warm, the first of them"`
}

// behindShown bounds the names that a Followed lists.
const behindShown = 20

// follower keeps names warm: it carries out what a follow.State says.
type follower struct {
	im   *Images
	wake chan struct{} // it may be due sooner
	told chan string   // names that are wanted now
	turn int           // of the looks; watch's
	work sync.WaitGroup

	doing sync.Mutex // held while actions are carried out, one after the other; before mu
	stops map[string]context.CancelFunc

	mu      sync.Mutex // guards what follows
	state   *follow.State
	missing map[string]time.Time // names of which members do not speak, and since when
}

func newFollower(im *Images) *follower {
	var kept []content.CID
	for _, pin := range im.cfg.Cache.Pinned() {
		if text, ok := strings.CutPrefix(pin, pinPrefix); ok {
			if root, err := content.ParseCID(text); err == nil {
				kept = append(kept, root)
			}
		}
	}
	return &follower{im: im, wake: make(chan struct{}, 1), told: make(chan string, 1), stops: map[string]context.CancelFunc{}, missing: map[string]time.Time{}, state: follow.New(im.cfg.Self, kept)}
}

// Run keeps what is followed warm until ctx ends. Without anything to follow it lets go
// what an earlier run has kept.
func (im *Images) Run(ctx context.Context) error {
	f := im.follower
	defer f.work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.work.Go(func() { f.watch(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			f.tell(ctx, follow.Event{Kind: follow.Woke})
		case <-f.wake:
		case <-ctx.Done():
			return nil
		}
		f.mu.Lock()
		now := im.cfg.Now()
		at := f.state.Next(now)
		f.mu.Unlock()
		if timer.Stop(); !at.IsZero() {
			timer.Reset(at.Sub(now))
		}
	}
}

// watch looks at the names again and again. The first look is not put off: what is kept
// from an earlier run is gone on with.
func (f *follower) watch(ctx context.Context) {
	tick := time.Tick(followEvery)
	for ctx.Err() == nil {
		f.lookOver(ctx)
		if err := f.keepLast(ctx); err != nil {
			f.im.cfg.Log.Debug("the last copy of what is followed may not be kept", "err", err)
		}
		if len(f.im.cfg.Follow) == 0 {
			return
		}
		select {
		case <-tick:
		case name := <-f.told:
			f.tell(ctx, follow.Event{Kind: follow.Told, Target: follow.Target{Name: name}})
		case <-ctx.Done():
		}
	}
}

// lookOver asks what the names stand for now, and looks up those that have changed. Where
// nobody can say, all stays as it is.
func (f *follower) lookOver(ctx context.Context) {
	cfg := &f.im.cfg
	var matches []Match
	var err error
	if len(cfg.Follow) > 0 {
		matches, err = cfg.Matching(ctx, cfg.Follow)
	}
	if err != nil {
		cfg.Log.Debug("what is followed can't be looked at now", "err", err)
		return
	}
	f.mu.Lock()
	versions := f.state.Versions()
	f.mu.Unlock()
	var looks errgroup.Group
	looks.SetLimit(looksAtOnce)
	followed := len(versions)
	for _, m := range matches {
		known, ok := versions[m.Name]
		delete(versions, m.Name)
		if !ok {
			followed++
		}
		if ok && known < m.Version || !ok && followed <= FollowedMax {
			looks.Go(func() error { f.lookUp(ctx, m.Name, m.Version); return nil })
		}
	}
	unlisted := 0
	for name := range versions {
		if unlisted++; unlisted > looksAtOnce && len(matches) >= FollowedMax {
			break // most of them are there, and the answer had no place for them
		}
		looks.Go(func() error { f.lookUp(ctx, name, 0); return nil })
	}
	_ = looks.Wait()
	f.tell(ctx, follow.Event{Kind: follow.Looked, Members: cfg.Mesh(), Room: cfg.Cache.Stats().Limit / 100 * keepShare})
}

// lookUp has the state know what a name stands for. One that is not there stays as it was,
// unless it was deleted: who has the bucket's credentials can take a record away.
func (f *follower) lookUp(ctx context.Context, name string, version uint64) {
	k, err := f.im.cfg.Names.LookupVersion(ctx, content.KindImage, name, version)
	rank := slices.IndexFunc(f.im.cfg.Follow, func(p follow.Pattern) bool { return p.Match(k.Kind, name) })
	switch {
	case k.Tombstone || err == nil && rank < 0 || f.misses(name, version == 0):
		f.tell(ctx, follow.Event{Kind: follow.Gone, Target: follow.Target{Name: name}})
	case err != nil:
		f.im.cfg.Log.Debug("a name that is followed can't be looked up now", "name", name, "err", err)
	default:
		i, err := f.im.info(k)
		if err != nil {
			f.im.cfg.Log.Warn("a name that is followed has a record that can't be read", "name", name, "err", err)
			return
		}
		f.tell(ctx, follow.Event{Kind: follow.Stands, Target: follow.Target{
			Name: name, Kind: k.Kind, Version: k.Version, Root: k.Root, Bytes: int64(i.Chunks) * int64(k.Head.Root.ChunkSize), Rank: rank,
		}})
	}
}

// misses notes whether members speak of a name no more, and reports whether a seed has to let it go.
func (f *follower) misses(name string, unknown bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !unknown || f.im.cfg.Signer.Identity().Role != trust.RoleSeed {
		delete(f.missing, name)
		return false
	}
	now := f.im.cfg.Now()
	if f.missing[name].IsZero() {
		f.missing[name] = now
	}
	return now.Sub(f.missing[name]) > goneAfter
}

// tell has the state take an event, and does what it says.
func (f *follower) tell(ctx context.Context, e follow.Event) {
	f.doing.Lock()
	defer f.doing.Unlock()
	f.mu.Lock()
	acts := f.state.Step(f.im.cfg.Now(), e)
	f.mu.Unlock()
	for _, a := range acts {
		switch a.Kind {
		case follow.Fetch:
			fetching, cancel := context.WithCancel(ctx)
			f.stops[a.Target.Name] = cancel
			f.work.Go(func() {
				defer cancel()
				if e := f.fetch(fetching, a.Target); fetching.Err() == nil {
					f.tell(ctx, e)
				}
			})
		case follow.Stop:
			f.stops[a.Target.Name]()
		case follow.Release:
			if err := f.im.cfg.Cache.Unpin(pinPrefix + a.Root.String()); err != nil {
				f.im.cfg.Log.Warn("what is not followed any more is kept", "root", a.Root, "err", err)
			}
		}
	}
	select {
	case f.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// fetch brings in what a name stands for, and keeps it.
func (f *follower) fetch(ctx context.Context, t follow.Target) follow.Event {
	err := f.bring(ctx, t)
	e := follow.Event{Kind: follow.Ended, Target: t, Full: errors.Is(err, content.ErrNoSpace)}
	if err != nil {
		e.Why = content.Line(err)
	}
	f.im.cfg.Log.Info("followed", "name", t.Name, "version", t.Version, "root", t.Root, "err", err)
	return e
}

func (f *follower) bring(ctx context.Context, t follow.Target) error {
	cfg := &f.im.cfg
	k, ok := cfg.Names.Held(content.KindImage, t.Name)
	if !ok || k.Root != t.Root || k.Tombstone {
		return content.ErrConflict // it stands for another by now: that is about to be told
	}
	m, err := cfg.Fetcher.Learn(RootOf(k))
	if err != nil {
		return err
	}
	m.Prepare(ctx)
	ids, err := f.im.all(ctx, k)
	if err != nil {
		return err
	}
	if err := f.pin(ctx, t, ids); err != nil {
		return err
	}
	if err := f.im.bringBoot(ctx, m, k); err != nil { // a boot that comes meanwhile need not wait for all
		f.im.cfg.Log.Debug("what boots want is not brought in first", "name", t.Name, "err", err)
	}
	return m.Warm(ctx, func(s fetch.Source, n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.state.Step(cfg.Now(), follow.Event{Kind: follow.Moved, Target: t, Source: s.String(), Bytes: int64(n)})
	})
}

// pin keeps chunks, unless the fetch was stopped: then they may just have been let go.
func (f *follower) pin(ctx context.Context, t follow.Target, ids []content.CID) error {
	f.doing.Lock()
	defer f.doing.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	cache := f.im.cfg.Cache
	return cache.Pin(pinPrefix+t.Root.String(), cache.Stats().Limit/100*keepShare, slices.Values(ids))
}

// want has a name that is followed looked at now, and fetched at once.
func (f *follower) want(name string) {
	select {
	case f.told <- name:
	default: // others are
	}
}

// Followed says how this node stands with the names that it follows; nil if it follows none.
func (im *Images) Followed() *Followed {
	if len(im.cfg.Follow) == 0 {
		return nil
	}
	im.follower.mu.Lock()
	defer im.follower.mu.Unlock()
	out := &Followed{States: map[follow.Phase]int{}}
	all := im.follower.state.Standings()
	for _, s := range all {
		out.Names++
		out.States[s.State]++
		if s.State != follow.Warm && len(out.Behind) < behindShown {
			out.Behind = append(out.Behind, s)
		}
	}
	for _, p := range im.cfg.Follow {
		out.Patterns = append(out.Patterns, p.String())
		if !slices.ContainsFunc(all, func(s follow.Standing) bool { return p.Match(s.Kind, s.Name) }) {
			out.Missing = append(out.Missing, p.String())
		}
	}
	return out
}

func (f *follower) standing(name string) *follow.Standing {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s, ok := f.state.Standing(name); ok {
		return &s
	}
	return nil
}

// all are the names of an image's chunks and map nodes.
func (im *Images) all(ctx context.Context, k records.Known) (ids []content.CID, err error) {
	m, err := im.cfg.Fetcher.Learn(RootOf(k))
	if err != nil {
		return nil, err
	}
	for id, err := range m.CIDs(ctx) {
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

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
