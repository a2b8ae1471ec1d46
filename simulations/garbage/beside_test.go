package garbage

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// commits are what nodes commit, each of what was dead or mostly dead before.
func commits() map[string]func(p *process) error {
	ctx := context.Background()
	return map[string]func(p *process) error{
		"publish what is gone": func(p *process) error { return p.publish(ctx, "b", []int{2, 7}) },
		"publish":              func(p *process) error { return p.publish(ctx, "b", []int{2, 3}) },
		"publish again":        func(p *process) error { return p.publish(ctx, "a", []int{1, 2, 3}) },
		"stow":                 func(p *process) error { return p.stow(ctx, "i", []int{2, 3}) },
		"lend":                 func(p *process) error { return p.lend(ctx, "a", 3*grace) },
		"tag": func(p *process) error {
			_, err := p.images.Tag(ctx, "a", "x")
			if err == nil {
				p.acks(content.KindTag, "x")
			}
			return err
		},
		"fold": func(p *process) error {
			d, err := p.open(ctx, "disk", catalog.PolicyOrigin)
			if err == nil {
				err = d.write(ctx, []int64{3, 40, 200}, 9)
			}
			if err == nil {
				err = d.folds.Run(ctx, fold.Chunks)
			}
			return err
		},
		"fork": func(p *process) error {
			return p.fork(ctx, "disk2", catalog.PolicyLocal, p.s.named(content.KindVolume)[0])
		},
		"snapshot": func(p *process) error {
			d, err := p.open(ctx, "disk", catalog.PolicyOrigin)
			if err == nil {
				err = d.snapshot(ctx)
			}
			if err == nil {
				err = d.folds.Run(ctx, fold.Safe)
			}
			return err
		},
	}
}

// littered has an origin with packs of which little lives, and some of which nothing does, both with tombstones whose grace
// is over; and a volume.
func (s *stage) littered(p, other *process) {
	ctx := context.Background()
	p.published("a", 1, 2, 3, 4, 5, 6)
	p.published("dead", 7, 8)
	d, err := p.open(ctx, "disk", catalog.PolicyOrigin)
	s.must(err)
	for n := range int64(3) {
		s.must(d.write(ctx, []int64{32 * n, 32*n + 1, 200}, byte(n)))
		s.must(d.folds.Run(ctx, fold.Chunks))
	}
	p.removed("dead")
	p.published("a", 1)
	other.collected(1)
}

// settled is what becomes of a commit beside collections: who is told that something is gone asks again. It has it then, but
// where its name or what it was made from was removed meanwhile, or it waited for longer than a node waits for its origin.
func (s *stage) settled(p *process, commit func(*process) error, err error) {
	s.fated(well)
	if errors.Is(err, content.Gone) || errors.Is(err, errOperation) {
		err = commit(p)
	}
	for _, may := range []error{nil, content.ErrUnavailable, context.DeadlineExceeded, content.ErrNotFound, content.ErrConflict, content.ErrExists, errOperation} {
		if errors.Is(err, may) {
			return
		}
	}
	s.fault(err)
}

// TestWhatWasWrittenAnewIsNamed: what others name of packs that were written anew is there, and may be named by more.
func TestWhatWasWrittenAnewIsNamed(t *testing.T) {
	for name, commit := range commits() {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(s *stage, p, other *process) {
				s.littered(p, other)
				other.collected(1)
				s.must(commit(p))
				other.collected(3)
				s.whole("days later", true)
			})
		})
	}
}

// TestACollectionAtEachRequest: whatever a node commits, at any of its requests another collects what is due by then, and
// once more, a grace later. What is acknowledged is whole.
func TestACollectionAtEachRequest(t *testing.T) {
	for name, commit := range commits() {
		t.Run(name, func(t *testing.T) {
			for _, times := range []int{1, 2} {
				for at, reached := 0, true; reached; at += times * stride() {
					bubble(t, func(s *stage, p, other *process) {
						s.littered(p, other)
						var n atomic.Int64
						s.fated(func(who *process, _ mem.Op, _ string) verdict {
							if who != p {
								return goes
							}
							if n.Add(1) == int64(at+1) {
								for range times {
									s.must(other.collect(context.Background(), 0.01))
									s.pass(grace + time.Hour)
								}
							}
							return goes
						})
						err := commit(p)
						reached = n.Load() > int64(at)
						s.settled(p, commit, err)
						s.whole("when it is committed", false)
						other.collected(3)
						s.whole("days later", false)
					})
				}
			}
		})
	}
}

// TestAwakeBesideARun: a committer slept, right before its record, until all that it was made from was removed and given
// tombstones, and their grace is over; it goes on at any request of the run that deletes. What is acknowledged is whole.
func TestAwakeBesideARun(t *testing.T) {
	for name, commit := range commits() {
		t.Run(name, func(t *testing.T) {
			for at, ended := 0, false; !ended; at += stride() {
				bubble(t, func(s *stage, p, other *process) {
					s.littered(p, other)
					other.collected(1) // some of it is written anew by now
					ended = s.awake(p, other, commit, at, name == "fork")
				})
			}
		})
	}
}

// awake reports whether the run had ended before it got to that request.
func (s *stage) awake(p, other *process, commit func(*process) error, at int, forks bool) (ended bool) {
	ctx := context.Background()
	reached, done, run := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	once, n := sync.Once{}, -1
	sleep := func() {
		_, err := other.images.Remove(ctx, "a")
		s.must(err)
		if forks {
			r, _, err := other.volumes.Volume(ctx, "disk")
			s.must(err)
			s.must(other.volumes.Registry.Delete(ctx, r))
		}
		other.collected(1)
		n = 0
		go func() { run <- other.collect(ctx, 0.01) }()
		select {
		case <-reached:
		case err := <-run:
			s.must(err)
			ended = true
			run <- nil
		}
	}
	var mu sync.Mutex
	s.fated(func(who *process, op mem.Op, key string) verdict {
		if who == p && op == mem.Put && strings.HasPrefix(key, string(content.KeyRecords)) {
			once.Do(sleep)
		}
		mu.Lock()
		waits := who == other && n == at
		if who == other && n >= 0 {
			n++
		}
		mu.Unlock()
		if waits {
			close(reached)
			<-done
		}
		return goes
	})
	err := commit(p)
	close(done)
	if err := <-run; err != nil {
		s.note("the run: %v", err) // one that stood still for days has lost its turn
	}
	s.settled(p, commit, err)
	s.whole("when it is committed", false)
	other.collected(3)
	s.whole("days later", false)
	return ended
}
