// Package have keeps which chunks of a root are here, and tells those who follow
// it what has come. It is made by looking at the cache, added to as chunks land, and
// made anew when the cache may have lost some.
package have

import (
	"errors"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch/patience"
	"github.com/grangemesh/grange/origin/content"
)

// newsMax bounds the additions that are remembered; beyond it, those who follow get
// the whole again.
const newsMax = 1 << 14

// Set is a set of chunks. The zero value is empty. Safe for concurrent use.
type Set struct {
	mu     sync.Mutex // guards what follows
	set    content.Bitmap
	landed *content.Bitmap // while a scan is under way, which may miss it; else nil

	// news are the additions since the set was made, for those who follow it, and
	// edition is how often it was made.
	news    []uint64
	edition uint64
	changed patience.Bell
}

// Len returns how many chunks are here.
func (s *Set) Len() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set.Len()
}

// Join adds all of another set.
func (s *Set) Join(set *content.Bitmap) {
	for index := range set.All {
		s.Add(index)
	}
}

// Add adds a chunk that has landed.
func (s *Set) Add(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.landed != nil {
		s.landed.Add(index)
	}
	if s.set.Has(index) {
		return
	}
	s.set.Add(index)
	if len(s.news) == newsMax {
		s.news = nil
		s.edition++
	}
	s.news = append(s.news, index)
	s.changed.Ring()
}

// Tell wakes those who wait for something to follow.
func (s *Set) Tell() { s.changed.Ring() }

// Begin begins a scan of the cache; one at a time.
func (s *Set) Begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.landed = new(content.Bitmap)
}

// Found ends a scan: what it found is here, and what landed meanwhile.
func (s *Set) Found(set *content.Bitmap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set.Union(s.landed)
	s.landed = nil
	if s.edition > 0 && set.Len() == s.set.Len() {
		return
	}
	s.set = *set
	s.news = nil
	s.edition++
	s.changed.Ring()
}

// Follower has been told of a set up to some point.
type Follower struct {
	edition uint64
	told    int
}

// Next returns what there is to tell, all of the set or additions to it; nil and a
// channel to wait on when there is nothing.
func (s *Set) Next(fo *Follower) (*content.Bitmap, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fo.edition != s.edition+1 {
		*fo = Follower{s.edition + 1, len(s.news)}
		return s.set.Clone(), nil
	}
	if fo.told == len(s.news) {
		return nil, s.changed.Wait()
	}
	var fresh content.Bitmap
	for _, index := range s.news[fo.told:] {
		fresh.Add(index)
	}
	fo.told = len(s.news)
	return &fresh, nil
}

// paceShare is how much of the time scans may take, of all roots together: one part
// in so many.
const paceShare = 50

// Pace is when the cache may be looked at again. Safe for concurrent use.
type Pace struct {
	mu   sync.Mutex // guards next
	next time.Time
}

// Due reports whether it may.
func (p *Pace) Due(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !now.Before(p.next)
}

// Spent has the next look wait for its share of what this one took.
func (p *Pace) Spent(now time.Time, cost time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(paceShare * cost)
}

// Announced are the keys that a node announces.
type Announced[K comparable] map[K]bool

// Settle announces those of mine that it does not yet, and withdraws the others. What could
// not be announced is tried again by the next.
func (a Announced[K]) Settle(mine map[K]bool, announce func(K) error, withdraw func(K)) (failed error) {
	for k := range mine {
		if a[k] {
			continue
		}
		if err := announce(k); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		a[k] = true
	}
	for k := range a {
		if !mine[k] {
			withdraw(k)
			delete(a, k)
		}
	}
	return failed
}
