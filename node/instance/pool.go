package instance

import "context"

// pool bounds how many steps are done at once. A step has one place in one pool, and waits for no other while it has it.
type pool chan struct{}

// newPool returns one of n places; of 0 it bounds nothing.
func newPool(n int) pool {
	if n == 0 {
		return nil
	}
	return make(pool, n)
}

// do runs a step once there is a place.
func (p pool) do(ctx context.Context, step func() error) error {
	if p == nil {
		return step()
	}
	select {
	case p <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-p }()
	return step()
}
