package bucket

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// failuresMax in a row are a store's that does not answer.
	failuresMax = 8
	// probePause lies between two requests that are let through from then on, to see whether
	// it is back: somebody may be waiting for it.
	probePause = 500 * time.Millisecond
)

type breaker struct {
	inner Bucket

	mu     sync.Mutex // guards what follows
	failed int        // in a row
	next   time.Time  // when one is let through, after too many
}

// Breaker bounds the load on a store that does not answer: but for one request a
// pause it is not asked, and the caller told ErrOpen at once. How long anybody waits
// for the store is not its affair.
func Breaker(b Bucket) Bucket { return &breaker{inner: b} }

// allow reports whether a request is to be sent. One that was and hangs holds up
// nobody: the next is let through after the next pause.
func (b *breaker) allow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.failed < failuresMax {
		return true
	}
	if now.Before(b.next) {
		return false
	}
	b.next = now.Add(probePause)
	return true
}

// learn notes how a request ended; nothing, when its caller went away before the
// answer for another reason than that there was none. A refusal is an answer.
func (b *breaker) learn(ctx context.Context, err error) {
	quiet := errors.Is(context.Cause(ctx), errQuiet)
	if err != nil && ctx.Err() != nil && !quiet {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil || !quiet && !errors.Is(err, content.ErrUnavailable) {
		b.failed = 0
		return
	}
	if b.failed++; b.failed == failuresMax {
		b.next = time.Now().Add(probePause)
	}
}

// guarded sends a request if it may.
func guarded[T any](ctx context.Context, b *breaker, what string, send func() (T, error)) (out T, err error) {
	if !b.allow() {
		return out, fmt.Errorf("%s: %w", what, ErrOpen)
	}
	out, err = send()
	b.learn(ctx, err)
	return out, err
}

func (b *breaker) Get(ctx context.Context, key string, r Range) (*Object, error) {
	return guarded(ctx, b, "get "+key, func() (*Object, error) { return b.inner.Get(ctx, key, r) })
}

func (b *breaker) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	return guarded(ctx, b, "put "+key, func() (Info, error) { return b.inner.Put(ctx, key, body, cond) })
}

// List implements Bucket. Its consumer may take long over it, so the breaker learns
// of the first answer or of the failure.
func (b *breaker) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if !b.allow() {
			yield(Info{}, fmt.Errorf("list %s: %w", prefix, ErrOpen))
			return
		}
		first := true
		for info, err := range b.inner.List(ctx, prefix, after) {
			if first {
				b.learn(ctx, err)
			}
			first = false
			if !yield(info, err) {
				return
			}
		}
		if first { // that there is nothing is an answer too
			b.learn(ctx, nil)
		}
	}
}

func (b *breaker) Delete(ctx context.Context, key string) error {
	_, err := guarded(ctx, b, "delete "+key, func() (struct{}, error) { return struct{}{}, b.inner.Delete(ctx, key) })
	return err
}
