package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/node/fetch/waits"
	"github.com/grangemesh/grange/origin/content"
)

// IOTimeoutDefault is how long a guest's read waits for its bytes: longer than a store
// is away that is restarted, shorter than the patience of who looks at a machine that
// stands still.
const IOTimeoutDefault = 5 * time.Minute

// OriginBack has the reads that wait ask again at once: the origin answers again.
func (f *Fetcher) OriginBack() { f.back.Tell() }

// Waiting says what guests of an image wait for.
type Waiting = waits.Waiting

// Waiting returns the reads of this handle that wait for a source to come back.
func (m *Image) Waiting() Waiting {
	w := m.waits.Now()
	w.Timeout = m.f.cfg.IOTimeout
	return w
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
		back := m.f.back.Wait()
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
			m.waits.Note(1, last)
			defer func() { m.f.metrics.waiting.Dec(); m.waits.Note(-1, nil) }()
		} else {
			m.waits.Note(0, last)
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
