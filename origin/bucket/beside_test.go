package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// patchy is a store whose answers a test makes worse, by the number of the request.
type patchy struct {
	bucket.Bucket
	asked chan int // holds the number of the next
	how   func(n int, ctx context.Context, o *bucket.Object) (*bucket.Object, error)
}

func (p *patchy) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	n := <-p.asked
	p.asked <- n + 1
	o, err := p.Bucket.Get(ctx, key, r)
	if err != nil {
		return nil, err
	}
	return p.how(n, ctx, o)
}

// slowly brings its bytes in pieces of at most so many, with a pause before each that
// goes with its length; a pause below 0 is for ever.
type slowly struct {
	io.ReadCloser
	ctx   context.Context
	piece int
	pause func() time.Duration
}

func (s *slowly) Read(p []byte) (int, error) {
	p = p[:min(len(p), s.piece)]
	pause := s.pause()
	if pause > 0 {
		pause = pause * time.Duration(len(p)) / time.Duration(s.piece)
	}
	if err := hold(s.ctx, pause); err != nil {
		return 0, err
	}
	return s.ReadCloser.Read(p)
}

func hold(ctx context.Context, pause time.Duration) error {
	var wait <-chan time.Time
	if pause >= 0 {
		wait = time.After(pause)
	}
	select {
	case <-wait:
		return nil
	case <-ctx.Done():
		return errors.Join(content.ErrUnavailable, context.Cause(ctx))
	}
}

// TestQuietAnswersAreAskedForBeside reads from stores that are silent, or trickle, in
// each phase of an answer; and from those that are merely slow, which are left in peace.
func TestQuietAnswersAreAskedForBeside(t *testing.T) {
	const size = 1 << 20
	silent := func() time.Duration { return -1 }
	body := func(piece int, pause func() time.Duration) func(int, context.Context, *bucket.Object) (*bucket.Object, error) {
		return func(n int, ctx context.Context, o *bucket.Object) (*bucket.Object, error) {
			if n == 0 {
				o.Body = &slowly{o.Body, ctx, piece, pause}
			}
			return o, nil
		}
	}
	for name, c := range map[string]struct {
		how         func(int, context.Context, *bucket.Object) (*bucket.Object, error)
		most, least time.Duration
		asked       int
	}{
		"well": {body(size, func() time.Duration { return 0 }), 0, 0, 1},
		"no answer": {func(n int, ctx context.Context, o *bucket.Object) (*bucket.Object, error) {
			if n == 0 {
				o.Body.Close()
				return nil, hold(ctx, -1)
			}
			return o, nil
		}, 2 * time.Second, 0, 2},
		"no body": {body(size, silent), 2 * time.Second, 0, 2},
		"it dries up": {func() func(int, context.Context, *bucket.Object) (*bucket.Object, error) {
			n := 0
			return body(100_000, func() time.Duration {
				if n++; n > 3 {
					return -1
				}
				return 0
			})
		}(), 2 * time.Second, 0, 2},
		"it trickles": {body(100, func() time.Duration { return 100 * time.Millisecond }), 3 * time.Second, 0, 2},
		"it is slow":  {body(32<<10, func() time.Duration { return time.Second }), 32 * time.Second, 32 * time.Second, 1},
		"a slow first byte": {func(n int, ctx context.Context, o *bucket.Object) (*bucket.Object, error) {
			return o, hold(ctx, 5*time.Second)
		}, 5 * time.Second, 5 * time.Second, 3},
		"no answer for 20 s": {func(n int, ctx context.Context, o *bucket.Object) (*bucket.Object, error) {
			if n < 13 { // asked within 2 + 12 × 2 s
				o.Body.Close()
				return nil, hold(ctx, -1)
			}
			return o, nil
		}, 27 * time.Second, 0, 14},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &patchy{mem.New(t, mem.Config{}), make(chan int, 1), c.how}
				store.asked <- 0
				want := bytes.Repeat([]byte("0123456789abcdef"), size/16)
				put(t, store, "packs/a", string(want))
				began := time.Now()
				got, _, err := bucket.ReadAll(t.Context(), bucket.Beside(store), "packs/a", size)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				if took := time.Since(began); took < c.least || took > c.most+100*time.Millisecond {
					t.Errorf("it took %s", took)
				}
				if asked := <-store.asked; asked != c.asked {
					t.Errorf("the store was asked %d times, want %d", asked, c.asked)
				}
				synctest.Wait()
			})
		})
	}
}

// TestPatienceIsTheSameForEachKind has a store say for most of the time that it is
// busy, and then that it is well.
func TestPatienceIsTheSameForEachKind(t *testing.T) {
	const busyFor = 25 * time.Second
	for _, fault := range []error{bucket.ErrBusy, content.ErrUnavailable} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			store := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault {
				if time.Since(began) < busyFor {
					return mem.Fault{Err: fault}
				}
				return mem.Fault{}
			}})
			b := bucket.Retry(bucket.Beside(bucket.Breaker(store)), bucket.RetryConfig{})
			for what, call := range map[string]func() error{
				"put": func() error {
					_, err := b.Put(t.Context(), "records/a", bucket.Bytes(nil), bucket.Condition{})
					return err
				},
				"put if absent": func() error {
					_, err := b.Put(t.Context(), "records/b", bucket.Bytes(nil), bucket.IfAbsent())
					if !errors.Is(fault, bucket.ErrBusy) { // its writer settles it
						return nil
					}
					return err
				},
				"get": func() error {
					_, _, err := bucket.ReadAll(t.Context(), b, "records/a", 10)
					return errOtherThanAbsent(err)
				},
				"list": func() (err error) {
					for _, err = range b.List(t.Context(), "records/", "") {
					}
					return err
				},
				"delete": func() error { return b.Delete(t.Context(), "records/c") },
			} {
				began = time.Now()
				if err := call(); err != nil {
					t.Errorf("%s gave up after %s: %v", what, time.Since(began), err)
				}
				if took := time.Since(began); took > busyFor+2*time.Second {
					t.Errorf("%s: the store was well for %s before it was found so", what, took-busyFor)
				}
			}
		})
	}
}

func errOtherThanAbsent(err error) error {
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	return err
}
