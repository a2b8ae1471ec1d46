package replica

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/mem"
)

// sick is a store of which every other write fails, done or not; but for the probe, which takes that for an answer.
type sick struct {
	bucket.Bucket
	writes *atomic.Int64
}

func (b sick) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	switch n := b.writes.Add(1); {
	case strings.HasPrefix(key, string(content.KeyProbes)):
	case n%4 == 1:
		return bucket.Info{}, bucket.ErrUnknown
	case n%4 == 3:
		_, err := b.Bucket.Put(ctx, key, body, cond)
		return bucket.Info{}, errors.Join(bucket.ErrUnknown, err)
	}
	return b.Bucket.Put(ctx, key, body, cond)
}

// TestCopyToAStore: a real S3 server of which every other write fails gets all, a segment in parts too.
func TestCopyToAStore(t *testing.T) {
	server := buckettest.StartS3(t)
	server.Setenv(t)
	location, err := s3.ParseURL(server.URL("copy"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := s3.Open(t.Context(), s3.Config{Location: location})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, mem.New(t, mem.Config{}))
	large := content.VolumeID{7}
	w.Volume("large", large, w.Segments(large, content.Position{}, 70<<20)...)
	to := bucket.Retry(store, bucket.RetryConfig{Wait: time.Millisecond})
	if _, err := Run(t.Context(), w.Source(), sick{to, new(atomic.Int64)}, Config{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if names := w.whole(t, to); len(names) != len(all())+1 {
		t.Fatalf("%v", names)
	}
	if r := w.copy(t, to); r.Sent.Objects > 0 || r.RecordsSent > 0 || r.Failed > 0 {
		t.Fatalf("%+v", r)
	}
}
