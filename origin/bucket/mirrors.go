package bucket

import (
	"context"
	"errors"

	"github.com/grangemesh/grange/origin/content"
)

// mirrors reads from others when the truth does not answer.
type mirrors struct {
	Bucket
	others []Bucket
}

// Mirrors returns the truth with read-only copies of it: a Get of an immutable
// object that the truth is not there to answer goes to each in turn. Records of a
// mirror may be old, so for them the truth is the only one that is asked.
func Mirrors(truth Bucket, others ...Bucket) Bucket { return mirrors{truth, others} }

func (m mirrors) Get(ctx context.Context, key string, r Range) (*Object, error) {
	o, err := m.Bucket.Get(ctx, key, r)
	for _, other := range m.others {
		if err == nil || !errors.Is(err, content.ErrUnavailable) || !content.IsImmutableKey(key) || ctx.Err() != nil {
			break
		}
		if copied, merr := other.Get(ctx, key, r); merr == nil {
			return copied, nil
		}
	}
	return o, err
}
