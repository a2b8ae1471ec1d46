package bucket

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/origin/content"
)

// RetryConfig says how long a request is repeated. The zero value is the default, for writers and for readers
// of what only the origin has; whoever has somebody else to ask is less patient.
type RetryConfig struct {
	// Tries bounds the times that one request is sent; 0 is no bound.
	Tries int
	// Wait is the mean pause before the second try; each later one is half as
	// long again, up to a second. 0 means 100 ms.
	Wait time.Duration
	// WithinMax bounds the time of all tries of a request; 0 means 30 s. It is the
	// same for each kind, so that no step of a long job gives up before the others.
	WithinMax time.Duration
	// Lost is told at once of each try that the store did not answer, with its error: whether
	// it is there is found out long before who asked gives up. nil is for nobody. It may not wait.
	Lost func(error)
}

// withinMax is how long a request is repeated if nothing else is said.
const withinMax = 30 * time.Second

// retryWaitMax bounds the pause between two tries: a store that is well again is
// found so soon. What it is asked by everybody meanwhile, a Breaker bounds.
const retryWaitMax = time.Second

type retrying struct {
	inner
	cfg RetryConfig
}

// Retry repeats requests that b could not answer, after a pause with jitter. A body that breaks is resumed
// where it broke, a list after the last key. A conditional Put is repeated only when the store says that it
// did nothing. An unconditional Put or Delete whose reply was lost is carried out again, maybe over what
// another writer has written meanwhile: they are for keys that have one writer.
func Retry(b Bucket, cfg RetryConfig) Bucket {
	cfg.Wait, cfg.WithinMax = cmp.Or(cfg.Wait, 100*time.Millisecond), cmp.Or(cfg.WithinMax, withinMax)
	return &retrying{inner{b}, cfg}
}

// again sends a request until it succeeds or fails with an error that is not worth another try.
func again[T any](ctx context.Context, r *retrying, worth error, send func() (T, error)) (T, error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = r.cfg.Wait, retryWaitMax
	var last error
	tries := 0
	out, err := backoff.Retry(ctx, func() (T, error) {
		out, err := send()
		last = err
		if tries++; r.cfg.Lost != nil && errors.Is(err, content.ErrUnavailable) {
			r.cfg.Lost(err)
		}
		if err != nil && (tries == r.cfg.Tries || ctx.Err() != nil || !errors.Is(err, worth) && !errors.Is(err, ErrOpen) || errors.Is(err, ErrReplaced)) {
			err = backoff.Permanent(err)
		}
		return out, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(r.cfg.WithinMax))
	if err != nil && last != nil && !errors.Is(err, last) { // ctx ended during a pause
		err = fmt.Errorf("%w (%w)", last, err)
	}
	return out, err
}

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
	n, err := b.read(p)
	if err == nil || err == io.EOF || b.ctx.Err() != nil || !errors.Is(err, content.ErrUnavailable) || errors.Is(err, ErrReplaced) {
		return n, err
	}
	return again(b.ctx, b.r, content.ErrUnavailable, func() (int, error) {
		if err := b.reopen(); err != nil {
			return 0, err
		}
		return b.read(p)
	})
}

// read reads what comes; what came before an error is good, and the next one meets that again.
func (b *resumed) read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if b.off += int64(n); n > 0 || b.off == b.end {
		err = nil
	}
	return n, err
}

func (b *resumed) reopen() error {
	b.body.Close() // whatever that says: it is broken
	o, err := b.r.inner.Get(b.ctx, b.info.Key, Range{b.off, b.end - b.off})
	if errors.Is(err, content.ErrInvalid) { // so much shorter
		err = fmt.Errorf("%w: %w", ErrReplaced, err)
	}
	if err == nil && (o.ETag != b.info.ETag || o.Size != b.info.Size || !o.Modified.Equal(b.info.Modified)) {
		err = errors.Join(fmt.Errorf("read %s: %w", b.info.Key, ErrReplaced), o.Body.Close())
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
				if err != nil && last != from && errors.Is(err, content.ErrUnavailable) {
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

func (r *retrying) Delete(ctx context.Context, key string) error {
	_, err := again(ctx, r, content.ErrUnavailable, func() (struct{}, error) { return struct{}{}, r.inner.Delete(ctx, key) })
	return err
}
