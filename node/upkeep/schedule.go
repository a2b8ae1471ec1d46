package upkeep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// lookMax is the longest time between two looks whether something is due: another node may have done it, and a host that
	// slept has missed the time.
	lookMax = time.Hour
	// firstLook is the longest time from the start of a node to its first look.
	firstLook = time.Minute
	// lateShare is of what part of its interval a node is late at most, each by a time of its own: so one is first.
	lateShare = 16
	// againShare is after what part of the interval it is tried again, when a run failed or was cut short.
	againShare = 8
)

// Run does at intervals what is due, until ctx ends.
func (u *Upkeep) Run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { keep(ctx, u.cfg.CollectEvery, u.untilCollection, u.collectNow) })
	both.Go(func() { keep(ctx, u.cfg.VerifyEvery, u.untilCheck, u.verifyNow) })
	both.Wait()
	return nil
}

// keep does some work at intervals: until says how long it is to the next time, or why that is not known. Zero is never.
func keep(ctx context.Context, every time.Duration, until func(context.Context) (time.Duration, error), work func(context.Context)) {
	if every == 0 {
		return
	}
	late := time.Duration(rand.Int64N(int64(every/lateShare) + 1))
	for wait := min(late, firstLook); ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		left, err := until(ctx)
		switch left += late; {
		case err != nil:
			wait = every / againShare
		case left > 0:
			wait = left
		default:
			work(ctx)
			wait = every / againShare
		}
		wait = min(wait, lookMax)
	}
}

// untilCollection is how long it is to the next collection of the mesh, by the store's clock.
func (u *Upkeep) untilCollection(ctx context.Context) (time.Duration, error) {
	at, err := u.mayCollect()
	if err != nil {
		return 0, err
	}
	return u.look(budget.With(ctx, budget.NewTurn(budget.Seeding, CollectKind)), at)
}

// look reads the record of the collections, and returns how long it is to the next.
func (u *Upkeep) look(ctx context.Context, at bucket.Bucket) (time.Duration, error) {
	now, err := clock(ctx, at)
	if err != nil {
		return 0, err
	}
	c, err := catalog.New(catalog.Config{Bucket: at, Verifier: u.cfg.Verifier, Now: now})
	if err != nil {
		return 0, err
	}
	var last catalog.Collection // zero where there was none
	r, err := c.Get(ctx, content.KindCollection, catalog.CollectionName)
	if err == nil && !r.Tombstone {
		last, err = catalog.DecodeCollection(u.codec, r.Body)
	}
	switch {
	case err == nil || errors.Is(err, content.ErrNotFound):
	case errors.Is(err, content.ErrUnavailable):
		return 0, err
	case errors.Is(err, content.ErrForbidden), errors.Is(err, content.ErrCorrupt): // which gives way to the next
		u.notCollected(fmt.Errorf("who collected last can't be read: %w", err))
	default:
		return 0, err
	}
	started := now().Add(-time.Since(u.begun))
	due := dueAfter(last, u.cfg.CollectEvery, started)
	if time.UnixMilli(last.Seen).After(now().Add(u.cfg.CollectEvery)) { // by a clock that was wrong
		due = dueAfter(catalog.Collection{}, u.cfg.CollectEvery, started)
	}
	u.collectedBy(last, due)
	return due.Sub(now()), nil
}

// dueAfter is when the next collection is due after one that there was, or with none before after this node's start.
func dueAfter(last catalog.Collection, every time.Duration, started time.Time) time.Time {
	switch {
	case last.Epoch == 0:
		return started.Add(every)
	case last.Ended == 0: // under way, or cut short
		return time.UnixMilli(last.Seen).Add(every / againShare)
	}
	return last.EndedAt().Add(every)
}

// collectNow collects as the defaults say, and returns when that has ended.
func (u *Upkeep) collectNow(ctx context.Context) {
	err := u.wait(ctx, func() (operations.View, error) { return u.Collect(CollectRequest{}) })
	if err != nil && ctx.Err() == nil {
		u.notCollected(err)
	}
}

// wait begins an operation, and returns what it has failed with when it has ended.
func (u *Upkeep) wait(ctx context.Context, begin func() (operations.View, error)) error {
	v, err := begin()
	if err == nil {
		v, err = u.cfg.Operations.Wait(ctx, v.ID)
	}
	return cmp.Or(err, v.Cause)
}
