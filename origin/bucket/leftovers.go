package bucket

import (
	"context"
	"time"
)

// inner is what a decorator passes its calls on to, and what abilities are looked for in that few stores have.
type inner struct{ Bucket }

// Unwrap returns what is below. Each decorator has it.
func (i inner) Unwrap() Bucket { return i.Bucket }

// Leftovers removes from the store below b what writers began longer ago than age, by the store's clock, and never ended:
// it takes space and no list shows it. It returns how much that was, and nothing for a store that keeps no such things. A
// writer that is at it still, however slow, finds that its write has failed.
func Leftovers(ctx context.Context, b Bucket, age time.Duration) (n int, bytes int64, err error) {
	for {
		if keeps, ok := b.(interface {
			Leftovers(ctx context.Context, age time.Duration) (int, int64, error)
		}); ok {
			return keeps.Leftovers(ctx, age)
		}
		over, ok := b.(interface{ Unwrap() Bucket })
		if !ok {
			return 0, 0, nil
		}
		b = over.Unwrap()
	}
}
