package bucket

import (
	"context"
	"io"

	"golang.org/x/time/rate"
)

// limited is a bucket within a budget.
type limited struct {
	Bucket
	requests *rate.Limiter
	bytes    *rate.Limiter
}

// burstBytes lets a run and its neighbour through at once.
const burstBytes = 4 << 20

// Limit keeps reads of b within a number of bytes and requests a second; 0 is no
// limit. A read waits until the budget has room, writes are not held up.
func Limit(b Bucket, bytesPerSecond int64, requestsPerSecond float64) Bucket {
	l := limited{b, rate.NewLimiter(rate.Inf, 0), rate.NewLimiter(rate.Inf, 0)}
	if requestsPerSecond > 0 {
		l.requests = rate.NewLimiter(rate.Limit(requestsPerSecond), int(max(requestsPerSecond, 1)))
	}
	if bytesPerSecond > 0 {
		l.bytes = rate.NewLimiter(rate.Limit(bytesPerSecond), burstBytes)
	}
	return l
}

// Get implements Bucket.
func (l limited) Get(ctx context.Context, key string, r Range) (*Object, error) {
	if err := l.requests.Wait(ctx); err != nil {
		return nil, err
	}
	o, err := l.Bucket.Get(ctx, key, r)
	if err == nil {
		o.Body = &limitedBody{o.Body, ctx, l.bytes}
	}
	return o, err
}

type limitedBody struct {
	io.ReadCloser
	ctx   context.Context // of the Get that opened the body, which bounds its reads too
	bytes *rate.Limiter
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), burstBytes)])
	if n > 0 && b.bytes.Limit() != rate.Inf {
		if werr := b.bytes.WaitN(b.ctx, n); werr != nil {
			return n, werr
		}
	}
	return n, err
}
