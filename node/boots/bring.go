package boots

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/fetch/object"
	"github.com/grangemesh/grange/node/fetch/tally"
	"github.com/grangemesh/grange/p2p/exchange"
)

const (
	// windowLeast is what of a list is on its way at first, in bytes as stored: some runs, each by a connection of its own, as
	// one that is fresh takes a round trip each time that it doubles what it carries. windowMost is what it grows to: what a
	// line of 1 Gbit/s carries in 120 ms.
	windowLeast, windowMost = 4 << 20, 16 << 20
	// windowTime is for how long what is on its way keeps the line busy: some round trips of a store that is far away. A line
	// that is slow has no more, so that what comes first is what is wanted first.
	windowTime = 300 * time.Millisecond
	// windowParts is by how many requests a wide window is brought, and requestLeast what one of them brings though it is
	// narrow, three runs: stores count requests.
	windowParts, requestLeast = 4, 7 << 19
)

// window is how much of a list is on its way at most: as much as makes it come faster, and no more. It is pure.
type window struct {
	size  int
	since time.Time // of what follows; zero before the first has come, which took a round trip more than those behind it
	came  int
}

func newWindow() *window { return &window{size: windowLeast} }

// landed notes that so many bytes have come.
func (w *window) landed(n int, now time.Time) {
	if w.since.IsZero() {
		w.since = now
		return
	}
	w.came += n
	if took := now.Sub(w.since); w.came >= w.size && took > 0 {
		rate := float64(w.came) / took.Seconds()
		w.size = int(min(max(rate*windowTime.Seconds(), windowLeast), windowMost))
		w.since, w.came = now, 0
	}
}

// following are the objects behind the first part that one request may bring with it, so that all is so many bytes: on a line
// that is slow a guest that wants the last of them would wait for the others.
func following(parts []fetch.Part, most int) (out []object.Object) {
	bytes := parts[0].Stored
	for _, p := range parts[1:] {
		if bytes += p.Stored; bytes > most || p.Objects[0].At.Pack != parts[0].Objects[0].At.Pack {
			break
		}
		out = append(out, p.Objects...)
	}
	return out
}

// Bring brings in the chunks of a list that are not here, exactly these and in their order, before other bulk where a guest
// boots, and has came count raw bytes by source. What can't be had is left to who reads it; the error says what that was.
func Bring(ctx context.Context, m *fetch.Image, boots bool, list []uint64, came *tally.Counters) error {
	as := exchange.PriorityPrefetch
	if boots {
		as = exchange.PriorityReadahead
	}
	parts, err := m.Lay(ctx, list)
	var mu sync.Mutex // guards what follows
	errs := []error{err}
	w, under := newWindow(), 0
	room := sync.NewCond(&mu)
	defer context.AfterFunc(ctx, room.Broadcast)()
	var all sync.WaitGroup
	mu.Lock()
	for i, p := range parts {
		for under > 0 && under+p.Stored > w.size && ctx.Err() == nil {
			room.Wait()
		}
		if ctx.Err() != nil {
			break
		}
		under += p.Stored
		p.Also = following(parts[i:], max(w.size/windowParts, requestLeast))
		all.Go(func() {
			err := m.Bring(ctx, as, p, came)
			mu.Lock()
			defer mu.Unlock()
			if under -= p.Stored; err == nil {
				w.landed(p.Stored, time.Now())
			}
			errs = append(errs, err)
			room.Signal()
		})
	}
	mu.Unlock()
	all.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}
