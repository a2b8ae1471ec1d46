// Package leases has what this node reads without a name stay at the origin: volumes that are read beside who writes them,
// trees that are mounted, instances whose data need not be here, volumes that are not registered yet. For each there is a
// record of this node's own, from before anything can become of it until it is read no more. No lease ends by itself: a
// node may sleep for a month, and go on.
package leases

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// lookEvery is how often it is looked what is read here, which asks nobody: an attach is long safe until then.
	lookEvery = 5 * time.Second
	// compareEvery is how often that is compared with the records at the origin though nothing has changed, and againAfter
	// how soon after that has failed.
	compareEvery = 10 * time.Minute
	againAfter   = 30 * time.Second
	// settleFor is how long after a start nothing is ended: what was read before may not be taken up again yet, and a node
	// that dies then may be away for long.
	settleFor = 15 * time.Second
)

// Want is content that is read here.
type Want struct {
	// What says for people what it is for, as "volume web1", and tells it from the others.
	What string
	// Folded is what is to stay. Its lineage does not.
	catalog.Folded
	// Size is that of the disk in bytes; of a tree, that of its root.
	Size int64
}

// Config is what Leases are built from.
type Config struct {
	Self   trust.PublicKey
	Farm   string
	Wanted func() []Want
	// Origin reports whether records can be written now. List returns those whose names begin so, and Commit writes one.
	Origin func() bool
	List   func(ctx context.Context, kind content.Kind, begin string) []catalog.Record
	Commit func(ctx context.Context, ch catalog.Change) (catalog.Record, error)
	Codec  *content.Codec
	Now    func() time.Time
	Log    *slog.Logger
}

// Leases are those of a node. Use: New, Run.
type Leases struct {
	cfg Config

	// What follows is Run's alone: what was wanted at the last comparison, when the next one is due though that is the same,
	// and the names of the records whose content was not seen to be there since they were written.
	began   time.Time // of Run
	last    map[string]wanted
	due     time.Time
	doubted map[string]bool

	mu      sync.Mutex // guards what follows
	damaged map[string]string
}

// New returns none, before Run.
func New(cfg Config) *Leases {
	return &Leases{cfg: cfg, doubted: map[string]bool{}, damaged: map[string]string{}}
}

// Damaged says of what is read here, by Want's What, what is wrong with it: some of it is gone from the origin.
func (l *Leases) Damaged() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.damaged)
}

// Run has the records be as is wanted, until ctx ends: they stay then. Of nil, who reads nothing, it has nothing to do.
func (l *Leases) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	tick := time.Tick(lookEvery)
	l.began = l.cfg.Now()
	for {
		if err := l.look(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, content.ErrUnavailable) {
			l.cfg.Log.Warn("what is read here may not be kept at the origin; that is tried again", "err", err)
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return nil
		}
	}
}

// look compares, where there is anything to compare and the origin answers.
func (l *Leases) look(ctx context.Context) error {
	want := l.wanted()
	same := maps.EqualFunc(want, l.last, func(a, b wanted) bool { return bytes.Equal(a.body, b.body) })
	if same && l.cfg.Now().Before(l.due) || !l.cfg.Origin() {
		return nil
	}
	err := l.compare(ctx, want)
	if l.last, l.due = want, l.cfg.Now().Add(compareEvery); err != nil {
		l.due = l.cfg.Now().Add(againAfter)
	}
	if l.settling() {
		l.due = l.began.Add(settleFor)
	}
	return err
}

// settling reports whether what is read here may not all be known yet.
func (l *Leases) settling() bool { return l.cfg.Now().Sub(l.began) < settleFor }

type wanted struct {
	what string
	body []byte
	bad  error // why there can be none, and none is changed
}

// wanted are the leases that there are to be, by their names.
func (l *Leases) wanted() map[string]wanted {
	out := map[string]wanted{}
	for _, w := range l.cfg.Wanted() {
		w.Lineage = nil
		body, err := catalog.Lease{Folded: w.Folded, Size: w.Size, Holder: l.cfg.Self, What: w.What}.Encode(l.cfg.Codec)
		out[catalog.LeaseName(l.cfg.Self, content.Sum([]byte(w.What)))] = wanted{w.What, body, err}
	}
	return out
}

// compare writes what is not there, and deletes what is there and not wanted.
func (l *Leases) compare(ctx context.Context, want map[string]wanted) error {
	there := map[string]catalog.Record{}
	for _, r := range l.cfg.List(ctx, content.KindLease, catalog.LeaseNames(l.cfg.Self)) {
		there[r.Name] = r
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(want)) {
		old, is := there[name]
		if bad := want[name].bad; bad != nil {
			errs = append(errs, fmt.Errorf("lease of %s: %w", want[name].what, bad))
			continue
		}
		if is && bytes.Equal(old.Body, want[name].body) && !l.doubted[name] {
			continue
		}
		ch := catalog.Change{Kind: content.KindLease, Name: name, Farm: l.cfg.Farm, Body: want[name].body, Damaged: true}
		if is {
			ch.Base = &old
		}
		_, err := l.cfg.Commit(ctx, ch)
		l.note(want[name].what, err)
		if l.doubted[name] = err != nil && !errors.Is(err, content.Gone); l.doubted[name] {
			errs = append(errs, fmt.Errorf("lease of %s: %w", want[name].what, err))
		}
	}
	for name, r := range there {
		if _, is := want[name]; is || l.settling() {
			continue
		}
		_, err := l.cfg.Commit(ctx, catalog.Change{Kind: content.KindLease, Name: name, Farm: r.Farm, Base: &r, Delete: true})
		if delete(l.doubted, name); err != nil {
			errs = append(errs, fmt.Errorf("end lease %s: %w", name, err))
		}
	}
	l.forget(want)
	return errors.Join(errs...)
}

// note says once what is gone.
func (l *Leases) note(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if delete(l.damaged, what); errors.Is(err, content.Gone) {
		l.damaged[what] = err.Error()
		l.cfg.Log.Error("some of what is read here is gone from the origin; what this node has of it stays", "what", what, "err", err)
	}
}

// forget drops what was wrong with what is read no more.
func (l *Leases) forget(want map[string]wanted) {
	read := map[string]bool{}
	for _, w := range want {
		read[w.what] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.damaged, func(what, _ string) bool { return !read[what] })
}
