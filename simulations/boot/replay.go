package boot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/simulations/guest"
)

// Replay is how reading a trace again went.
type Replay struct {
	// Wall is how long it took, Waiting for how long of that at least one read was not answered,
	// and Summed what all reads took.
	Wall, Waiting, Summed time.Duration
	// Reads are the trace's, as they went.
	Reads Trace
}

// Replay reads what the guest read, with as much at once as it did: each read is sent when that is answered whose answer was the last
// before it, and the pause between both is over, times speed: 1 as recorded, 0.1 as by a processor that is not emulated. Each answer is
// held against raw. The guest starts now.
func (t Trace) Replay(ctx context.Context, uri string, raw io.ReaderAt, speed float64) (Replay, error) {
	disk, err := guest.DialNBD(ctx, uri)
	if err != nil {
		return Replay{}, err
	}
	answered := make([]chan struct{}, len(t))
	for i := range answered {
		answered[i] = make(chan struct{})
	}
	out := Replay{Reads: slices.Clone(t)}
	group, ctx := errgroup.WithContext(ctx)
	var checks sync.WaitGroup
	var wrong failures
	start := time.Now()
	for i, before := range t.after() {
		group.Go(func() error {
			a, pause := &out.Reads[i], t[i].Sent
			if before >= 0 {
				select {
				case <-answered[before]:
				case <-ctx.Done():
					return ctx.Err()
				}
				pause -= t[before].Answered
			}
			if err := wait(ctx, time.Duration(speed*float64(pause))); err != nil {
				return err
			}
			p := make([]byte, a.Length)
			a.Sent = time.Since(start)
			_, err := disk.ReadAt(p, a.Offset)
			a.Answered = time.Since(start)
			close(answered[i])
			if err != nil {
				return fmt.Errorf("read %d bytes at %d: %w", a.Length, a.Offset, err)
			}
			checks.Go(func() { wrong.add(check(p, raw, a.Offset)) })
			return nil
		})
	}
	err = group.Wait()
	checks.Wait()
	out.sum()
	return out, errors.Join(err, wrong.all(), disk.Close())
}

// wait waits for what pauses a guest; very short pauses are none.
func wait(ctx context.Context, d time.Duration) error {
	if d < 50*time.Microsecond {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failures are errors of many goroutines.
type failures struct {
	mu  sync.Mutex
	are []error
}

func (e *failures) add(err error) {
	if err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.are = append(e.are, err)
	}
}

func (e *failures) all() error { return errors.Join(e.are...) }

// check fails where what was read is not what the file has.
func check(p []byte, raw io.ReaderAt, off int64) error {
	want := make([]byte, len(p))
	if _, err := raw.ReadAt(want, off); err != nil {
		return err
	}
	if !bytes.Equal(p, want) {
		return fmt.Errorf("%d bytes at %d are not those of the image", len(p), off)
	}
	return nil
}

func (r *Replay) sum() {
	var until time.Duration
	for _, a := range r.inOrder() {
		r.Summed += a.Answered - a.Sent
		r.Waiting += max(0, a.Answered-max(until, a.Sent))
		until = max(until, a.Answered)
	}
	r.Wall = until
}

func (r *Replay) inOrder() Trace {
	return slices.SortedFunc(slices.Values(r.Reads), func(a, b Access) int { return cmp.Compare(a.Sent, b.Sent) })
}

// Slowest returns the reads that waited longest.
func (r *Replay) Slowest(n int) Trace {
	out := slices.SortedFunc(slices.Values(r.Reads), func(a, b Access) int { return cmp.Compare(b.Answered-b.Sent, a.Answered-a.Sent) })
	return out[:min(n, len(out))]
}
