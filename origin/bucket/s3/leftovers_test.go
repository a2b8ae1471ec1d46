package s3

import (
	"bytes"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
)

// begin begins an upload in parts, and never ends it.
func begin(t *testing.T, b *Bucket, key string, size int) {
	t.Helper()
	up, err := b.client.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &b.cfg.Bucket, Key: b.key(key)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.client.UploadPart(t.Context(), &s3.UploadPartInput{
		Bucket: &b.cfg.Bucket, Key: b.key(key), UploadId: up.UploadId, PartNumber: aws.Int32(1), Body: bytes.NewReader(make([]byte, size)),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestUploadsThatNobodyEnds: they are removed once they are old, below all decorators, and those of others stay.
func TestUploadsThatNobodyEnds(t *testing.T) {
	s := start(t)
	b, other := open(t, s.URL("ours")), open(t, s.URL("others"))
	begin(t, b, "packs/a", 1000)
	begin(t, b, "packs/a", 2000)
	begin(t, b, "journals/b", 3000)
	begin(t, other, "packs/a", 4000)
	if _, err := b.Put(t.Context(), "packs/c", bucket.Bytes([]byte("c")), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	stack := bucket.Retry(bucket.Mirrors(bucket.Limit(bucket.Beside(bucket.Breaker(bucket.WithMetrics(b))), budget.New(budget.Limits{}))), bucket.RetryConfig{})
	const before = -time.Hour // all that was begun up to then: the store's clock has seconds
	for _, c := range []struct {
		b     bucket.Bucket
		age   time.Duration
		n     int
		bytes int64
	}{{stack, time.Hour, 0, 0}, {stack, before, 3, 6000}, {stack, before, 0, 0}, {other, before, 1, 4000}} {
		if n, bytes, err := bucket.Leftovers(t.Context(), c.b, c.age); err != nil || n != c.n || bytes != c.bytes {
			t.Fatalf("%d of %d bytes, %v; want %d of %d", n, bytes, err, c.n, c.bytes)
		}
	}
	for info, err := range stack.List(t.Context(), "", "") {
		if err != nil || info.Key != "packs/c" {
			t.Fatalf("%+v, %v", info, err)
		}
	}
}
