package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/buckettest"
	"github.com/grangemesh/grange/origin/content"
)

// hop puts a front before the store, through which wrap has requests go, and opens the
// bucket there.
func hop(t *testing.T, s *buckettest.S3, wrap func(http.Handler) http.Handler) *Bucket {
	t.Helper()
	target, err := url.Parse(s.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true}
	server := httptest.NewServer(wrap(&httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: func(r *http.Response) error {
			if r.Request.Header.Get("X-Chunked") != "" {
				r.Header.Del("Content-Length")
				r.ContentLength = -1
			}
			return nil
		},
	}))
	t.Cleanup(func() { server.Close(); transport.CloseIdleConnections() })
	return open(t, strings.Replace(s.URL("odd"), s.Endpoint, server.URL, 1))
}

// TestOddStores writes, reads and lists with stores and hops that people have.
func TestOddStores(t *testing.T) {
	s := start(t)
	var there *httptest.Server
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"a hop that rewrites Accept-Encoding": func(store http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Header.Set("Accept-Encoding", "gzip, br")
				store.ServeHTTP(w, r)
			})
		},
		"no Content-Length": func(store http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					r.Header.Set("X-Chunked", "yes")
				}
				store.ServeHTTP(w, r)
			})
		},
		"Content-MD5 demanded": func(store http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut && r.Header.Get("Content-MD5") == "" {
					w.WriteHeader(http.StatusBadRequest)
					fmt.Fprint(w, "<Error><Code>InvalidRequest</Code><Message>Missing required header for this request: Content-MD5 OR x-amz-checksum-*</Message></Error>")
					return
				}
				store.ServeHTTP(w, r)
			})
		},
		"307": func(store http.Handler) http.Handler {
			there = httptest.NewServer(store)
			t.Cleanup(there.Close)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodDelete {
					w.Header().Set("Location", there.URL+r.URL.RequestURI())
					w.WriteHeader(http.StatusTemporaryRedirect)
					fmt.Fprint(w, "<Error><Code>TemporaryRedirect</Code><Message>Please re-send this request to the specified temporary endpoint.</Message></Error>")
					return
				}
				store.ServeHTTP(w, r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := hop(t, s, wrap)
			b.cfg.Prefix = fmt.Sprintf("odd%d", len(name))
			buckettest.RunReads(t, b, b)
			if err := bucket.Probe(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

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
