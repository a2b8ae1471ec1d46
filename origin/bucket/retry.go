package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/origin/content"
)

// RetryConfig says how often a request is repeated. The zero value is the default.
type RetryConfig struct {
	// Tries bounds the times that one request is sent; 0 means 5, by when a store
	// that is only busy has answered.
	Tries int
	// Wait is the mean pause before the second try; each later one is half as
	// long again. 0 means 100 ms.
	Wait time.Duration
	// WithinMax bounds the time of all tries of a request; 0 means 30 s.
	WithinMax time.Duration
	// Budget is how many repetitions the bucket may be ahead of a tenth of its
	// successes; 0 means 50. It keeps a store that fails for everybody from being
	// asked five times as much.
	Budget int
}

func (c RetryConfig) withDefaults() RetryConfig {
	if c.Tries <= 0 {
		c.Tries = 5
	}
	if c.Wait <= 0 {
		c.Wait = 100 * time.Millisecond
	}
	if c.WithinMax <= 0 {
		c.WithinMax = 30 * time.Second
	}
	if c.Budget <= 0 {
		c.Budget = 50
	}
	return c
}

// retryWaitMax bounds the pause between two tries.
const retryWaitMax = 3 * time.Second

type retrying struct {
	inner  Bucket
	cfg    RetryConfig
	budget budget
}

// Retry repeats requests that b could not answer, after a pause with jitter. A
// body that breaks is resumed where it broke, a list after the last key. A
// conditional Put is repeated only when the store says that it did nothing. An
// unconditional Put or Delete whose reply was lost is carried out again, maybe
// over what another writer has written meanwhile: they are for keys that have one
// writer.
func Retry(b Bucket, cfg RetryConfig) Bucket {
	cfg = cfg.withDefaults()
	return &retrying{inner: b, cfg: cfg, budget: budget{tokens: float64(cfg.Budget), max: float64(cfg.Budget)}}
}

// budget allows repetitions in proportion to successes.
type budget struct {
	mu          sync.Mutex // guards tokens
	tokens, max float64
}

// earned is what a success adds: in the long run one request of ten is repeated
// at most.
const earned = 0.1

func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.max, b.tokens+earned)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// again sends a request until it succeeds or fails with an error that is not
// worth another try.
func again[T any](ctx context.Context, r *retrying, worth error, send func() (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = r.cfg.Wait, retryWaitMax
	var last error
	tries := 0
	out, err := backoff.Retry(ctx, func() (T, error) {
		out, err := send()
		last = err
		tries++
		switch {
		case err == nil:
			r.budget.earn()
		case tries == r.cfg.Tries || ctx.Err() != nil || !errors.Is(err, worth) || errors.Is(err, ErrOpen) || !r.budget.spend():
			err = backoff.Permanent(err)
		}
		return out, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(r.cfg.WithinMax))
	if err != nil && last != nil && !errors.Is(err, last) { // ctx ended during a pause
		err = fmt.Errorf("%w: %w", err, last)
	}
	return out, err
}

// Get implements Bucket.
func (r *retrying) Get(ctx context.Context, key string, at Range) (*Object, error) {
	o, err := again(ctx, r, content.ErrUnavailable, func() (*Object, error) { return r.inner.Get(ctx, key, at) })
	if err != nil {
		return nil, err
	}
	if off, length, err := at.Within(o.Size); err == nil {
		o.Body = &resumed{ctx: ctx, r: r, info: o.Info, body: o.Body, off: off, end: off + length}
	}
	return o, nil
}

// resumed is a body that is opened again where it breaks.
type resumed struct {
	ctx      context.Context // of the Get that opened the body, which bounds its reads too
	r        *retrying
	info     Info
	body     io.ReadCloser
	off, end int64 // what is still to be read of the object
}

func (b *resumed) Read(p []byte) (int, error) {
	if b.off == b.end {
		return 0, io.EOF
	}
	for {
		n, err := b.body.Read(p)
		b.off += int64(n)
		switch {
		case err == nil || b.off == b.end:
			return n, nil
		case n > 0: // what came is good; the next Read meets the error again
			return n, nil
		case err == io.EOF || b.ctx.Err() != nil || !errors.Is(err, content.ErrUnavailable) || !b.r.budget.spend():
			return n, err
		}
		if err := b.reopen(err); err != nil {
			return 0, err
		}
	}
}

func (b *resumed) reopen(cause error) error {
	if err := b.body.Close(); err != nil {
		return errors.Join(cause, err)
	}
	o, err := again(b.ctx, b.r, content.ErrUnavailable, func() (*Object, error) {
		return b.r.inner.Get(b.ctx, b.info.Key, Range{b.off, b.end - b.off})
	})
	if err == nil && (o.ETag != b.info.ETag || o.Size != b.info.Size || !o.Modified.Equal(b.info.Modified)) {
		err = errors.Join(fmt.Errorf("read %s: %w: it was replaced meanwhile", b.info.Key, content.ErrUnavailable), o.Body.Close())
	}
	if err != nil {
		b.body = io.NopCloser(failing{err})
		return err
	}
	b.body = o.Body
	return nil
}

// failing stands for a body that could not be opened.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func (b *resumed) Close() error { return b.body.Close() }

// Put implements Bucket.
func (r *retrying) Put(ctx context.Context, key string, body Body, cond Condition) (Info, error) {
	worth := content.ErrUnavailable
	if !cond.IsZero() {
		worth = ErrBusy
	}
	return again(ctx, r, worth, func() (Info, error) { return r.inner.Put(ctx, key, body, cond) })
}

// List implements Bucket. A try that brought something on is a success, behind which
// the next begins: however long the list, only a store that stands still ends it.
func (r *retrying) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		last, ended := after, false
		try := func() (struct{}, error) {
			from := last
			for info, err := range r.inner.List(ctx, prefix, last) {
				if err != nil && last != from && errors.Is(err, content.ErrUnavailable) && r.budget.spend() {
					return struct{}{}, nil
				}
				if err != nil {
					return struct{}{}, err
				}
				if last = info.Key; !yield(info, nil) {
					break
				}
			}
			ended = true
			return struct{}{}, nil
		}
		for !ended {
			if _, err := again(ctx, r, content.ErrUnavailable, try); err != nil {
				yield(Info{}, err)
				return
			}
		}
	}
}

// Delete implements Bucket.
func (r *retrying) Delete(ctx context.Context, key string) error {
	_, err := again(ctx, r, content.ErrUnavailable, func() (struct{}, error) { return struct{}{}, r.inner.Delete(ctx, key) })
	return err
}
