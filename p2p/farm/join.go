package farm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

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
		case <-ctx.Done():
		}
	}
}

// targets returns whom to try to join now, and when to look again: those that are
// missing, and one of those that live here and whose certificate was missed.
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
	missing = slices.DeleteFunc(missing, func(address string) bool {
		return slices.ContainsFunc(members, func(m Member) bool { return m.Address == address })
	})
	unproved := f.roster.uncertified()
	for _, list := range [][]string{missing, unproved} {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	if len(members) <= 1 {
		return joinInterval, append(missing, unproved[:min(len(unproved), 1)]...)
	}
	return rejoinInterval, append(missing[:min(len(missing), 1)], unproved[:min(len(unproved), 1)]...)
}

// join exchanges what is known with one neighbour.
func (f *Farm) join(address string) error {
	_, err := f.list.Join([]string{address})
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
