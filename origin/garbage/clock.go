package garbage

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
)

// slipMax is how far the answers of one store may be apart in time: it is many hosts, whose clocks are kept.
const slipMax = 2 * time.Minute

// dated is a bucket that keeps the store's clock, and counts what it is asked.
type dated struct {
	bucket.Bucket
	requests atomic.Int64

	mu     sync.Mutex // guards all below
	latest time.Time
	doubt  error
}

// saw takes the time of an answer.
func (d *dated) saw(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case now.IsZero() && d.latest.IsZero():
		d.doubt = fmt.Errorf("%w: its answers have no Date", bucket.ErrDoubt)
	case now.IsZero():
	case now.Before(d.latest.Add(-slipMax)):
		d.doubt = fmt.Errorf("%w: its clock went back from %s to %s", bucket.ErrDoubt, d.latest.Format(time.DateTime), now.Format(time.DateTime))
	case now.After(d.latest):
		if d.latest.IsZero() {
			d.doubt = nil
		}
		d.latest = now
	}
}

// now is the latest time that the store has said.
func (d *dated) now() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.latest
}

// doubted is why the store can't be relied upon; nil while it can.
func (d *dated) doubted() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.doubt
}

// Unwrap returns what it watches.
func (d *dated) Unwrap() bucket.Bucket { return d.Bucket }

// Get implements bucket.Bucket.
func (d *dated) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	d.requests.Add(1)
	o, err := d.Bucket.Get(ctx, key, r)
	if err == nil {
		d.saw(o.Now)
	}
	return o, err
}

// Put implements bucket.Bucket.
func (d *dated) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	d.requests.Add(1)
	info, err := d.Bucket.Put(ctx, key, body, cond)
	if err == nil {
		d.saw(info.Now)
	}
	return info, err
}

// Delete implements bucket.Bucket.
func (d *dated) Delete(ctx context.Context, key string) error {
	d.requests.Add(1)
	return d.Bucket.Delete(ctx, key)
}

// List implements bucket.Bucket.
func (d *dated) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		n := 0
		for info, err := range d.Bucket.List(ctx, prefix, after) {
			if n++; n%bucket.PageSize == 1 {
				d.requests.Add(1)
			}
			if err == nil {
				d.saw(info.Now)
			}
			if !yield(info, err) {
				return
			}
		}
		if n == 0 {
			d.requests.Add(1)
		}
	}
}
