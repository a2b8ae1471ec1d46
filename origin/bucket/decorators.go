package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"golang.org/x/time/rate"

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

type limited struct {
	inner    Bucket
	requests *rate.Limiter
	bytes    *rate.Limiter
}

// burstBytes lets a run and its neighbours through at once.
const burstBytes = 4 << 20

// Limit keeps b within a budget, of bytes that are read and of requests of all kinds a
// second; 0 is no limit. Reads wait until there is room. Writes do not, as a guest may be
// waiting for its flush: they count, so that reads wait for them.
func Limit(b Bucket, bytes int64, requests float64) Bucket {
	limiter := func(n float64, burst int) *rate.Limiter {
		if n <= 0 {
			return rate.NewLimiter(rate.Inf, 0)
		}
		return rate.NewLimiter(rate.Limit(n), burst)
	}
	return limited{b, limiter(requests, int(max(requests, 1))), limiter(float64(bytes), burstBytes)}
}

func (l limited) Get(ctx context.Context, key string, r Range) (*Object, error) {
	if err := l.requests.Wait(ctx); err != nil {
		return nil, fmt.Errorf("get %s: wait for a turn: %w", key, err)
	}
	o, err := l.inner.Get(ctx, key, r)
	if err != nil {
		return nil, err
	}
	o.Body = &limitedBody{o.Body, ctx, l.bytes}
	return o, nil
}

type limitedBody struct {
	io.ReadCloser
	ctx   context.Context // of the Get that opened the body, which bounds its reads too
	bytes *rate.Limiter
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), burstBytes)])
	if werr := b.bytes.WaitN(b.ctx, n); werr != nil {
		return n, werr
	}
	return n, err
}

// count takes a request from the budget without waiting for it.
func (l limited) count() { l.requests.ReserveN(time.Now(), 1) }

func (l limited) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	l.count()
	return l.inner.Put(ctx, key, body, cond)
}

func (l limited) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := l.requests.Wait(ctx); err != nil {
			yield(Info{}, fmt.Errorf("list %s: wait for a turn: %w", prefix, err))
			return
		}
		seen := 0
		for info, err := range l.inner.List(ctx, prefix, after) {
			if seen++; seen%PageSize == 0 {
				l.count() // the next page
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (l limited) Delete(ctx context.Context, key string) error {
	l.count()
	return l.inner.Delete(ctx, key)
}

// mirrors reads from others when the truth does not answer.
type mirrors struct {
	Bucket
	others []Bucket
}

// Mirrors returns the truth with read-only copies of it: a Get of an immutable
// object that the truth is not there to answer goes to each in turn. Records of a
// mirror may be old, so for them the truth is the only one that is asked.
func Mirrors(truth Bucket, others ...Bucket) Bucket { return mirrors{truth, others} }

func (m mirrors) Get(ctx context.Context, key string, r Range) (*Object, error) {
	o, err := m.Bucket.Get(ctx, key, r)
	for _, other := range m.others {
		if err == nil || !errors.Is(err, content.ErrUnavailable) || !content.IsImmutableKey(key) || ctx.Err() != nil {
			break
		}
		if copied, merr := other.Get(ctx, key, r); merr == nil {
			return copied, nil
		}
	}
	return o, err
}
