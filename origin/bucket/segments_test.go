package bucket_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/bucket/web"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/buckettest"
)

// TestSegmentsAreKeys: what a name is in a key is one object in a folder, in S3, and for
// who reads the folder through a web server.
func TestSegmentsAreKeys(t *testing.T) {
	root := t.TempDir()
	folder, err := dir.Open(t.Context(), root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(root)))
	defer server.Close()
	mirror, err := web.Open(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	gateway := buckettest.StartS3(t)
	gateway.Setenv(t)
	l, err := s3.ParseURL(gateway.URL("segments"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := s3.Open(t.Context(), s3.Config{Location: l})
	if err != nil {
		t.Fatal(err)
	}
	key := "records/image/" + content.Segment("ghcr.io/org/debian:12")
	for _, b := range []bucket.Bucket{folder, store} {
		if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte("text")), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
		for info, err := range b.List(t.Context(), "records/image/", "") {
			if err != nil || info.Key != key {
				t.Errorf("%q, %v", info.Key, err)
			}
		}
	}
	for _, b := range []bucket.Bucket{folder, store, mirror} {
		o, err := b.Get(t.Context(), key, bucket.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(o.Body); err != nil || string(text) != "text" {
			t.Errorf("%q, %v", text, err)
		}
		if err := o.Body.Close(); err != nil {
			t.Error(err)
		}
	}
}
