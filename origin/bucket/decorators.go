package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/bucket/budget"
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
	inner

	mu     sync.Mutex // guards what follows
	failed int        // in a row
	next   time.Time  // when one is let through, after too many
}

// Breaker bounds the load on a store that does not answer: but for one request a pause it is not asked, and
// the caller told ErrOpen at once. How long anybody waits for the store is not its affair.
func Breaker(b Bucket) Bucket { return &breaker{inner: inner{b}} }

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
	if err == nil || errors.Is(err, ErrBusy) || !quiet && !errors.Is(err, content.ErrUnavailable) {
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
	inner
	budget *budget.Budget
}

// Limit keeps b within a budget. Reads wait for their turn, see budget.With; one that the store
// refuses with ErrSlowDown waits for another. Writes don't, as a guest may be waiting for its
// flush: they count, so that reads wait for them.
func Limit(b Bucket, within *budget.Budget) Bucket { return limited{inner{b}, within} }

// learn tells the budget of a request that was refused.
func (l limited) learn(sent time.Time, err error) {
	if errors.Is(err, ErrSlowDown) {
		l.budget.SlowDown(sent)
	}
}

func (l limited) Get(ctx context.Context, key string, r Range) (*Object, error) {
	var refused error
	for begun := time.Now(); ; {
		turn, err := l.budget.Take(ctx)
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", key, errors.Join(err, refused))
		}
		o, err := l.inner.Get(ctx, key, r)
		if err == nil {
			o.Body = &limitedBody{o.Body, ctx, turn}
			return o, nil
		}
		l.learn(turn.Sent, err)
		turn.End()
		if refused = err; !errors.Is(err, ErrSlowDown) || time.Since(begun) > withinMax {
			return nil, err
		}
	}
}

// limitedBody is in flight until it is closed.
type limitedBody struct {
	io.ReadCloser
	ctx  context.Context // of the Get that opened the body, which bounds its reads too
	turn *budget.Request
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), budget.BytesMax)])
	if late := b.turn.Read(b.ctx, n); late != nil {
		return n, late
	}
	return n, err
}

func (b *limitedBody) Close() error {
	b.turn.End()
	return b.ReadCloser.Close()
}

func (l limited) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	sent := l.budget.Write()
	info, err := l.inner.Put(ctx, key, body, cond)
	l.learn(sent, err)
	return info, err
}

// List implements Bucket. It is in flight until its first answer: its consumer may take long over it.
func (l limited) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		turn, err := l.budget.Take(ctx)
		if err != nil {
			yield(Info{}, fmt.Errorf("list %s: %w", prefix, err))
			return
		}
		defer turn.End()
		sent, seen := turn.Sent, 0
		for info, err := range l.inner.List(ctx, prefix, after) {
			turn.End()
			l.learn(sent, err)
			if seen++; seen%PageSize == 0 {
				sent = l.budget.Write() // the next page
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

func (l limited) Delete(ctx context.Context, key string) error {
	sent := l.budget.Write()
	err := l.inner.Delete(ctx, key)
	l.learn(sent, err)
	return err
}

// mirrors reads from others when the truth does not answer.
type mirrors struct {
	inner
	others []Bucket
}

// Mirrors returns the truth with read-only copies of it: a Get of an immutable
// object that the truth is not there to answer goes to each in turn. Records of a
// mirror may be old, so for them the truth is the only one that is asked.
func Mirrors(truth Bucket, others ...Bucket) Bucket { return mirrors{inner{truth}, others} }

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

// Readable is b for who has to know what is there: an object that it refuses to show is content.ErrUnavailable, as that says
// nothing of the object.
func Readable(b Bucket) Bucket { return readable{b} }

type readable struct{ Bucket }

func (b readable) Get(ctx context.Context, key string, r Range) (*Object, error) {
	o, err := b.Bucket.Get(ctx, key, r)
	if errors.Is(err, content.ErrForbidden) {
		err = fmt.Errorf("%w: %v", content.ErrUnavailable, err)
	}
	return o, err
}
