package bucket

import (
	"context"
	"errors"
	"iter"

	"github.com/grangemesh/grange/origin/content"
)

// mirrors reads from others when the truth does not answer.
type mirrors struct {
	Bucket
	others []Bucket
}

// Mirrors returns the truth with read-only copies of it: a Get that the truth is
// not there to answer goes to each in turn. Records there may be old, so only
// what is named by its content should be read so; the rest fails as before.
func Mirrors(truth Bucket, others ...Bucket) Bucket { return mirrors{truth, others} }

// Get implements Bucket.
func (m mirrors) Get(ctx context.Context, key string, r Range) (*Object, error) {
	o, err := m.Bucket.Get(ctx, key, r)
	for _, other := range m.others {
		if err == nil || !errors.Is(err, content.ErrUnavailable) || ctx.Err() != nil {
			break
		}
		if copied, merr := other.Get(ctx, key, r); merr == nil {
			return copied, nil
		}
	}
	return o, err
}

// List implements Bucket.
func (m mirrors) List(ctx context.Context, prefix, after string) iter.Seq2[Info, error] {
	return m.Bucket.List(ctx, prefix, after)
}
