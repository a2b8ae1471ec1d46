package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// TestWhatOthersPutIntoTheBucketIsNotListed: the markers of folders that consoles make,
// and names that no object of ours has.
func TestWhatOthersPutIntoTheBucketIsNotListed(t *testing.T) {
	b := open(t, start(t).URL("markers"))
	if _, err := b.Put(t.Context(), "packs/mesh/a", bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"markers/", "markers/packs/", "markers/packs/mesh/", "markers/packs/mesh/a b.txt", "markers/packs/mesh/~", "markers/packs/mesh/sub/"} {
		if _, err := b.client.PutObject(t.Context(), &awss3.PutObjectInput{Bucket: &b.cfg.Bucket, Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []bucket.Range{{Offset: -256}, {Length: 10}} {
		const empty = "packs/mesh/empty"
		if _, err := b.Put(t.Context(), empty, bucket.Bytes(nil), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), empty, r); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("a range of an empty object: %v, want ErrInvalid", err)
		}
		if err := b.Delete(t.Context(), empty); err != nil {
			t.Fatal(err)
		}
	}
	for _, prefix := range []string{"", "packs/", "packs/mesh/"} {
		var got []string
		for info, err := range b.List(t.Context(), prefix, "") {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, info.Key)
		}
		if fmt.Sprint(got) != "[packs/mesh/a]" {
			t.Errorf("%q: %q", prefix, got)
		}
	}
}

// TestMessagesNameTheCauseOnce and the setting that helps.
func TestMessagesNameTheCauseOnce(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "k")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Request-Id", "ID4711")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "<Error><Code>SlowDown</Code><Message>Please go slower.</Message><RequestId>ID4711</RequestId></Error>")
	}))
	defer server.Close()
	_, err := open(t, "s3://b?endpoint="+server.URL+"&path-style=true").Get(t.Context(), "a", bucket.Range{})
	for _, once := range []string{"ID4711", "503", "SlowDown", "Please go slower"} {
		if n := strings.Count(err.Error(), once); n != 1 {
			t.Errorf("%q stands there %d times: %v", once, n, err)
		}
	}
	if strings.Contains(err.Error(), "operation error") {
		t.Errorf("it speaks of the SDK: %v", err)
	}
	host := open(t, "s3://b?endpoint=http://store.test")
	err = host.explain(context.Background(), "get a", &net.DNSError{Err: "no such host", Name: "b.store.test", IsNotFound: true})
	if !strings.Contains(err.Error(), "path-style=true") {
		t.Errorf("%v, want the setting named", err)
	}
}
