package farm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// joinInterval is how often a lonely member looks for neighbours, who may start later.
	joinInterval = 2 * time.Second
	// rejoinInterval is how often a member that is not alone looks for one that it
	// lost or was given: gossip forgets the dead within a minute, so the two halves
	// of a farm that was cut would never find together by themselves.
	rejoinInterval = 10 * time.Second
	// lostMax bounds the members that are looked for, lostFor for how long.
	lostMax = 64
	lostFor = 24 * time.Hour
	// tcpTimeout bounds each step of an attempt, and so how long a stop waits for one.
	tcpTimeout = 3 * time.Second
)

// keepJoined looks for neighbours until ctx ends.
func (f *Farm) keepJoined(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		wait, targets := f.targets(f.cfg.Now())
		var err error
		for _, address := range targets {
			if err = f.join(address); ctx.Err() != nil || err == nil && wait == joinInterval {
				break
			}
		}
		f.mu.Lock()
		f.joining = err
		f.mu.Unlock()
		if text := fmt.Sprint(err); wait == joinInterval && err != nil && said != text && ctx.Err() == nil {
			said = text
			f.cfg.Log.Warn("no neighbour of the farm has been joined yet; they are tried again and again", "err", err)
		}
		select {
		case <-time.After(wait):
		case <-f.wake:
		case <-ctx.Done():
		}
	}
}

// targets returns whom to try to join now, and when to look again: those that are
// missing, those found on the LAN, and one of those that live here and whose certificate was missed.
func (f *Farm) targets(now time.Time) (time.Duration, []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	missing := slices.Clone(f.cfg.Join)
	for address, a := range f.lost {
		if now.Sub(a.Since) > lostFor {
			delete(f.lost, address)
			continue
		}
		missing = append(missing, address)
	}
	members := f.here.Load().members
	here := func(address string) bool {
		return slices.ContainsFunc(members, func(m Member) bool { return m.Address == address })
	}
	missing = slices.DeleteFunc(missing, here)
	found := slices.DeleteFunc(slices.Collect(maps.Keys(f.found)), here)
	clear(f.found) // each is tried once, and found again
	unproved := f.roster.uncertified()
	for _, list := range [][]string{missing, unproved} {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	unproved = unproved[:min(len(unproved), 1)]
	if len(members) <= 1 {
		return joinInterval, slices.Concat(found, missing, unproved)
	}
	return rejoinInterval, slices.Concat(found, missing[:min(len(missing), 1)], unproved)
}

// join exchanges what is known with one neighbour.
func (f *Farm) join(address string) error {
	_, err := f.list.Load().Join([]string{address})
	if err == nil {
		return nil
	}
	err = cmp.Or(errors.Unwrap(err), err) // out of a list of one
	text := err.Error()
	for _, silent := range []string{"dial ", "timeout", "resolve"} {
		if strings.Contains(text, silent) {
			return fmt.Errorf("join %s: %w: %w", address, content.ErrUnavailable, err)
		}
	}
	return fmt.Errorf("join %s: %w: it answers, but is of another farm or has another gossip key, as for a minute after `grange mesh rotate`: %w", address, content.ErrForbidden, err)
}

// Absence is of a member that was here.
type Absence struct {
	ID      peer.ID
	Address string // its gossip HOST:PORT
	Since   time.Time
	Left    bool // it said good-bye
}

// lose remembers who is gone. Called with mu.
func (f *Farm) lose(a Absence) {
	for address := range f.lost {
		if len(f.lost) < lostMax {
			break
		}
		delete(f.lost, address)
	}
	f.lost[a.Address] = a
}

// Lost returns the members that are gone without a good-bye, the last one first, and
// why no neighbour could be joined; nil where there are some, or none were given.
func (f *Farm) Lost() (lost []Absence, alone error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.lost {
		if !a.Left && !slices.Contains(f.here.Load().ids, a.ID) {
			lost = append(lost, a)
		}
	}
	slices.SortFunc(lost, func(a, b Absence) int { return b.Since.Compare(a.Since) })
	if len(f.here.Load().ids) == 1 {
		alone = f.joining
	}
	return lost, alone
}

const (
	// keySpread is how long a new key is only understood before this member speaks it:
	// by then the others have it, so that nobody loses sight of the farm. Secrets are
	// everywhere within a minute; who is later than this is alone until it has the key.
	keySpread = time.Minute
	// keyGrace is how long the key before is understood after that, for whose keySpread
	// began later. It is short: somebody has the key who should not, and is not listed.
	keyGrace = 10 * time.Minute
)

// agedKey is a key of the gossip, and since when this member has it.
type agedKey struct {
	key   [32]byte
	since time.Time
}

// use says which of the keys, the oldest first, is spoken now, which is the oldest
// that is still understood, and when that changes.
func use(keys []agedKey, now time.Time) (spoken, oldest int, next time.Time) {
	soonest := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for i, k := range keys[1:] {
		from := k.since.Add(keySpread)
		alone := from.Add(keyGrace)
		if !now.Before(from) {
			spoken = i + 1
		}
		if !now.Before(alone) {
			oldest = i + 1
		}
		soonest(from)
		soonest(alone)
	}
	return spoken, oldest, next
}

// Rotate gives the farm a new key: understood at once, spoken after keySpread; keyGrace
// later the one before is understood no more. The newest key again changes nothing.
func (f *Farm) Rotate(key [32]byte) error {
	if key == ([32]byte{}) {
		return fmt.Errorf("farm %s: %w: a gossip key of zeros", f.name, content.ErrInvalid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[len(f.keys)-1].key == key {
		return nil
	}
	if err := f.ring.AddKey(key[:]); err != nil {
		return fmt.Errorf("farm %s: %w", f.name, err)
	}
	f.keys = append(f.keys, agedKey{key, f.cfg.Now()})
	select {
	case f.rotated <- struct{}{}:
	default:
	}
	return nil
}

// keepKeys speaks new keys and forgets old ones when it is time, until ctx ends.
func (f *Farm) keepKeys(ctx context.Context) {
	for {
		var turn <-chan time.Time
		if next := f.turnKeys(); !next.IsZero() {
			turn = time.After(next.Sub(f.cfg.Now()))
		}
		select {
		case <-turn:
		case <-f.rotated:
		case <-ctx.Done():
			return
		}
	}
}

// turnKeys has the ring be as the keys' ages say, and returns when to look again.
func (f *Farm) turnKeys() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	spoken, oldest, next := use(f.keys, f.cfg.Now())
	if err := arrange(f.ring, f.keys, spoken, oldest); err != nil {
		f.cfg.Log.Error("gossip: the new key can't be used", "err", err)
		return time.Time{}
	}
	f.keys = f.keys[oldest:]
	return next
}

// arrange puts the spoken key first in the ring, and removes those before the oldest.
// The others stand behind, the newest first: memberlist reads a ring while it is
// changed, which only the removal of the last key bears.
func arrange(ring *memberlist.Keyring, keys []agedKey, spoken, oldest int) error {
	for _, k := range append(keys[:len(keys):len(keys)], keys[spoken]) {
		if err := ring.UseKey(k.key[:]); err != nil {
			return err
		}
	}
	for _, k := range keys[:oldest] {
		if err := ring.RemoveKey(k.key[:]); err != nil {
			return err
		}
	}
	return nil
}
