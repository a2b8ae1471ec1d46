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
	// windowLeast is what of a list is on its way at first, in bytes as stored: two runs, so that one comes while the other is
	// asked for, and a slow line brings them nearly one after the other. windowMost is what it grows to: what a line of
	// 1 Gbit/s carries in 60 ms.
	windowLeast, windowMost = 2 << 20, 8 << 20
	// pays is how many times as fast it has to get for a window that is doubled.
	pays = 1.25
)

// window is how much of a list is on its way at most: as much as makes it come faster, and no more, so that what comes
// first is what is wanted first. It is pure.
type window struct {
	size  int
	since time.Time // of what follows; zero before the first has come, which took a round trip more than those behind it
	came  int
	rate  float64 // the best so far, in bytes a second
	full  bool    // it does not grow any more
}

func newWindow() *window { return &window{size: windowLeast} }

// landed notes that so many bytes have come.
func (w *window) landed(n int, now time.Time) {
	if w.since.IsZero() {
		w.since = now
		return
	}
	w.came += n
	took := now.Sub(w.since).Seconds()
	if w.full || w.came < w.size || took <= 0 {
		return
	}
	rate := float64(w.came) / took
	if w.full = rate < pays*w.rate || w.size == windowMost; !w.full {
		w.size *= 2
	}
	w.rate, w.since, w.came = max(w.rate, rate), now, 0
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
		p.Also = following(parts[i:], w.size/2)
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
