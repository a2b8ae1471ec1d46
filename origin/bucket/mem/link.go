package mem

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// linkBurst is how many bytes a Link lets through at once.
const linkBurst = 1 << 20

// Link returns a Config.Wait that acts like a line to the store which all callers
// share: each call takes the latency, and its bytes the time that the rate gives
// them. A rate of 0 is no limit. It works inside synctest.
func Link(latency time.Duration, bytesPerSecond int64) func(context.Context, Call) error {
	limit := rate.NewLimiter(rate.Inf, linkBurst)
	if bytesPerSecond > 0 {
		limit = rate.NewLimiter(rate.Limit(bytesPerSecond), linkBurst)
	}
	return func(ctx context.Context, c Call) error {
		select {
		case <-time.After(latency):
		case <-ctx.Done():
			return ctx.Err()
		}
		for left := c.Bytes; left > 0; left -= linkBurst {
			if err := limit.WaitN(ctx, int(min(left, linkBurst))); err != nil {
				return fmt.Errorf("line to the store: %w", err)
			}
		}
		return nil
	}
}
