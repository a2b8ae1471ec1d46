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
	// windowFirst is what of a list is on its way at first, in bytes as stored: three requests, each by a connection of its
	// own, as one that is fresh takes a round trip each time that it doubles what it carries. windowMost is what it grows to,
	// which a line of 1 Gbit/s carries in 120 ms, and windowLeast what it has on a slow one.
	windowFirst, windowLeast, windowMost = 8 << 20, 5 << 20, 16 << 20
	// windowTime is for how long what is on its way keeps the line busy: some round trips of a store that is far away. A line
	// that is slow has no more, so that what comes first is what is wanted first.
	windowTime = 300 * time.Millisecond
	// windowParts is by how many requests a wide window is brought, and requestLeast what one of them brings though it is
	// narrow, which is half of that: stores count requests.
	windowParts, requestLeast = 4, windowLeast / 2
)

// window is how much of a list is on its way at most: as much as makes it come faster, and no more. It is pure.
type window struct {
	size  int
	since time.Time // of what follows; zero before the first has come, which took a round trip more than those behind it
	came  int
}

func newWindow() *window { return &window{size: windowFirst} }

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

// request is how many bytes one request brings at most: on a line that is slow a guest that wants the last of them would wait
// for the others.
func (w *window) request() int { return max(w.size/windowParts, requestLeast) }

// together returns the first parts, those that one request may bring as they are of one pack and so many bytes at most, and
// how many bytes they are. Whichever of them comes first to read the origin brings all.
func together(parts []fetch.Part, most int) (group []fetch.Part, bytes int) {
	var all []object.Object
	for _, p := range parts {
		if len(group) > 0 && (bytes+p.Stored > most || p.Objects[0].At.Pack != parts[0].Objects[0].At.Pack) {
			break
		}
		group, bytes, all = append(group, p), bytes+p.Stored, append(all, p.Objects...)
	}
	for i := range group {
		group[i].Also = all
	}
	return group, bytes
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
	for len(parts) > 0 && ctx.Err() == nil {
		group, bytes := together(parts, w.request())
		if under > 0 && under+bytes > w.size {
			room.Wait()
			continue
		}
		parts, under = parts[len(group):], under+bytes
		for _, p := range group {
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
	}
	mu.Unlock()
	all.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}
