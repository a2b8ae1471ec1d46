package bucket

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/grangemesh/grange/origin/content"
)

// BreakerConfig says when a store is left alone. The zero value is the default.
type BreakerConfig struct {
	// Failures in a row after which the store is not asked; 0 means 8, more than
	// the tries of one request.
	Failures int
	// Pause until one request is let through to see whether it is back; 0 means
	// 2 s, as often as a node looks for its origin.
	Pause time.Duration
}

type breaker struct {
	inner   Bucket
	circuit *gobreaker.TwoStepCircuitBreaker[struct{}]
}

// Breaker answers ErrOpen at once, instead of letting each caller find out by
// itself, while b does not answer.
func Breaker(b Bucket, cfg BreakerConfig) Bucket {
	if cfg.Failures <= 0 {
		cfg.Failures = 8
	}
	if cfg.Pause <= 0 {
		cfg.Pause = 2 * time.Second
	}
	return &breaker{b, gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Timeout:      cfg.Pause,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= cfg.Failures },
		IsSuccessful: func(err error) bool { return !errors.Is(err, content.ErrUnavailable) }, // a refusal is an answer
		IsExcluded:   func(err error) bool { return err == context.Canceled },
	})}
}

// verdict is what the circuit learns of a request: nothing, when its caller went
// away before the answer.
func verdict(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Canceled
	}
	return err
}

// guarded sends a request if the circuit is closed.
func guarded[T any](ctx context.Context, b *breaker, what string, send func() (T, error)) (out T, err error) {
	done, err := b.circuit.Allow()
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, ErrOpen)
	}
	out, err = send()
	done(verdict(ctx, err))
	return out, err
}

// Get implements Bucket.
func (b *breaker) Get(ctx context.Context, key string, r Range) (*Object, error) {
	return guarded(ctx, b, "get "+key, func() (*Object, error) { return b.inner.Get(ctx, key, r) })
}

// Put implements Bucket.
func (b *breaker) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	return guarded(ctx, b, "put "+key, func() (Info, error) { return b.inner.Put(ctx, key, body, cond) })
}

// List implements Bucket. Its consumer may take long over it, so the circuit
// learns of the first answer or of the failure.
func (b *breaker) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		done, err := b.circuit.Allow()
		if err != nil {
			yield(Info{}, fmt.Errorf("list %s: %w", prefix, ErrOpen))
			return
		}
		told := false
		tell := func(err error) {
			if !told {
				done(verdict(ctx, err))
			}
			told = true
		}
		defer func() { tell(nil) }()
		for info, err := range b.inner.List(ctx, prefix, after) {
			tell(err)
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete implements Bucket.
func (b *breaker) Delete(ctx context.Context, key string) error {
	_, err := guarded(ctx, b, "delete "+key, func() (struct{}, error) { return struct{}{}, b.inner.Delete(ctx, key) })
	return err
}
