package fetch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/content"
)

// IOTimeoutDefault is how long a guest's read waits for its bytes: longer than a store
// is away that is restarted, shorter than the patience of who looks at a machine that
// stands still.
const IOTimeoutDefault = 5 * time.Minute

// back is what those wait for who wait for a source. Safe for concurrent use.
type back struct {
	mu sync.Mutex    // guards ch
	ch chan struct{} // closed when one is back; nil while nobody waits
}

func (b *back) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// OriginBack has the reads that wait ask again at once: the origin answers again.
func (f *Fetcher) OriginBack() {
	f.back.mu.Lock()
	defer f.back.mu.Unlock()
	if f.back.ch != nil {
		close(f.back.ch)
		f.back.ch = nil
	}
}

// Waiting says what guests of an image wait for.
type Waiting struct {
	// Reads that every source has failed, for now; Since is when the first of them
	// began, and Why the latest reason.
	Reads int
	Since time.Time
	Why   error
	// Timeout is how long each of them waits.
	Timeout time.Duration
}

// Waiting returns the reads of this handle that wait for a source to come back.
func (m *Image) Waiting() Waiting {
	m.waits.mu.Lock()
	defer m.waits.mu.Unlock()
	w := m.waits.Waiting
	w.Timeout = m.f.cfg.IOTimeout
	return w
}

// waits are those of one image.
type waits struct {
	mu sync.Mutex // guards Waiting
	Waiting
}

func (w *waits) note(reads int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Reads == 0 {
		w.Since = time.Now()
	}
	if w.Reads += reads; w.Reads == 0 {
		w.Waiting = Waiting{}
		return
	}
	w.Why = err
}

// mayCome reports whether what failed so may come right. A climb that was final is
// content.ErrCorrupt or content.ErrNotFound instead.
func mayCome(err error) bool { return errors.Is(err, content.ErrUnavailable) }

// patiently has what a guest waits for tried again until it comes, until the sources
// have said that it is nowhere, or until the guest has waited for as long as it may.
// When what the guest reads from ends, or the node, that is over at once.
func (m *Image) patiently(ctx context.Context, try func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, m.f.cfg.IOTimeout)
	defer cancel()
	last := error(content.ErrUnavailable)
	for n := 0; ; n++ {
		back := m.f.back.wait()
		err := try(within)
		if err == nil || !mayCome(err) && within.Err() == nil {
			return err
		}
		if mayCome(err) {
			last = err
		}
		if n == 0 {
			m.f.metrics.waits.Inc()
			m.f.metrics.waiting.Inc()
			m.waits.note(1, last)
			defer func() { m.f.metrics.waiting.Dec(); m.waits.note(-1, nil) }()
		} else {
			m.waits.note(0, last)
		}
		select {
		case <-back:
			n = 0
		case <-time.After(plan.Again(n)):
		case <-m.f.ctx.Done():
			return errStopped
		case <-within.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("nothing came within %s, see --io-timeout: %w", m.f.cfg.IOTimeout, last)
		}
	}
}
