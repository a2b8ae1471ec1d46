package bucket_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// throttled is a store that takes so many requests a second, and refuses others, under what
// a node has above one.
func throttled(t *testing.T, takes rate.Limit, lost func(error)) bucket.Bucket {
	store := rate.NewLimiter(takes, 1)
	b := bucket.Breaker(mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if !store.Allow() {
			return mem.Fault{Err: fmt.Errorf("%s %s: %w", c.Op, c.Key, bucket.ErrSlowDown)}
		}
		return mem.Fault{}
	}}))
	return bucket.Retry(bucket.Limit(bucket.Beside(b), budget.New(budget.Limits{})), bucket.RetryConfig{Tries: 3, WithinMax: 500 * time.Millisecond, Lost: lost})
}

// TestThrottledIsNotAway: many read at once what a store refuses mostly. Each has its bytes,
// with the little patience of who could ask others, and nobody is told that it is away.
func TestThrottledIsNotAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers, reads, takes = 32, 20, 50
		b := throttled(t, takes, func(err error) { t.Error(err) })
		put(t, b, "packs/a", "x")
		begun := time.Now()
		var work sync.WaitGroup
		for range readers {
			work.Go(func() {
				for range reads {
					if text, _, err := bucket.ReadAll(t.Context(), b, "packs/a", 1); err != nil || string(text) != "x" {
						t.Errorf("%q, %v", text, err)
					}
				}
			})
		}
		work.Wait()
		if took, least := time.Since(begun), readers*reads*time.Second/takes; took > 2*least {
			t.Errorf("%d reads took %s, a store that takes %d a second could have had them sent in %s", readers*reads, took, takes, least)
		}
	})
}

// TestRefusedForEver: a store that takes nothing is asked in vain for a while, by readers and
// by writers, and no breaker hides what it says.
func TestRefusedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := throttled(t, 0, nil)
		put(t, b, "a", "x") // the only one
		for range 10 {
			if _, err := b.Put(t.Context(), "a", bucket.Bytes(nil), bucket.IfAbsent()); !errors.Is(err, bucket.ErrSlowDown) || !errors.Is(err, content.ErrUnavailable) {
				t.Errorf("a write: %v", err)
			}
		}
		begun := time.Now()
		_, err := b.Get(t.Context(), "a", bucket.Range{})
		if took := time.Since(begun); !errors.Is(err, bucket.ErrSlowDown) || took < 30*time.Second || took > 40*time.Second {
			t.Errorf("a read, after %s: %v", took, err)
		}
		brief, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err = b.Get(brief, "a", bucket.Range{}); !errors.Is(err, bucket.ErrSlowDown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a read within seconds: %v", err)
		}
	})
}
