package bucket

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"golang.org/x/time/rate"
)

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
