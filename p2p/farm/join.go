package farm

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// joinInterval is how often a member that is alone looks for the neighbours
	// that it was given: they may start later than it.
	joinInterval = 2 * time.Second
	// rejoinInterval is how often a member that is not alone looks for one that it
	// lost or was given: gossip forgets the dead within a minute, so the two halves
	// of a farm that was cut would never find together by themselves.
	rejoinInterval = 10 * time.Second
	// lostMax bounds the members that are looked for, lostFor for how long.
	lostMax = 64
	lostFor = 24 * time.Hour
	// tcpTimeout bounds each step of an attempt, and so how long a stop may wait
	// for one.
	tcpTimeout = 3 * time.Second
)

// keepJoined looks for neighbours until ctx ends.
func (f *Farm) keepJoined(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		wait, targets := f.targets(time.Now())
		var err error
		for _, address := range targets {
			if err = f.join(address); ctx.Err() != nil || err == nil && wait == joinInterval {
				break
			}
		}
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
	for address, since := range f.lost {
		if now.Sub(since) > lostFor {
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
		f.metrics.attempts.WithLabelValues("ok").Inc()
		return nil
	}
	f.metrics.attempts.WithLabelValues("failed").Inc()
	text := err.Error()
	for _, silent := range []string{"dial ", "timeout", "resolve"} {
		if strings.Contains(text, silent) {
			return fmt.Errorf("join %s: %w: %w", address, content.ErrUnavailable, err)
		}
	}
	return fmt.Errorf("join %s: %w: it answers, but is of another farm or has another gossip key: %w", address, content.ErrForbidden, err)
}

// lose remembers where a member lived that is gone. Called with mu.
func (f *Farm) lose(at string) {
	for address := range f.lost {
		if len(f.lost) < lostMax {
			break
		}
		delete(f.lost, address)
	}
	f.lost[at] = time.Now()
}
