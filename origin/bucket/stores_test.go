package bucket_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/bucket/web"
	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/mem"
)

func openDir(t testing.TB, root string) bucket.Bucket {
	t.Helper()
	b, err := dir.Open(t.Context(), root, slog.New(slog.DiscardHandler))
	ok(t, err)
	return b
}

func startS3(t testing.TB) *buckettest.S3 {
	s := buckettest.StartS3(t)
	s.Setenv(t)
	return s
}

func openS3(t testing.TB, location string) bucket.Bucket {
	t.Helper()
	l, err := s3.ParseURL(location)
	ok(t, err)
	b, err := s3.Open(t.Context(), s3.Config{Location: l})
	ok(t, err)
	return b
}

func TestMemKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) bucket.Bucket { return mem.New(lenient{t}, mem.Config{}) })
}

func TestDirKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) bucket.Bucket { return openDir(t, t.TempDir()) })
}

func TestS3KeepsTheContract(t *testing.T) {
	s := startS3(t)
	contract(t, func(t *testing.T) bucket.Bucket {
		return bucket.Retry(openS3(t, s.URL("suite/"+strings.ReplaceAll(t.Name(), "/", "-"))), bucket.RetryConfig{})
	})
}

// TestWebReadsAFolder reads through a plain web server what package dir writes.
func TestWebReadsAFolder(t *testing.T) {
	root := t.TempDir()
	write := openDir(t, root)
	server := httptest.NewServer(http.StripPrefix("/prefix", http.FileServer(http.Dir(root))))
	t.Cleanup(server.Close)
	read, err := web.Open(server.URL + "/prefix/")
	ok(t, err)
	reads(t, write, read)
}

// handles are several openings of one folder, as several processes have.
type handles struct {
	bucket.Bucket
	others chan bucket.Bucket
}

func (h handles) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	b := <-h.others
	defer func() { h.others <- b }()
	return b.Put(ctx, key, body, cond)
}

// TestContractAcrossProcesses writes through eight openings of the folder, which
// share nothing but its lock.
func TestContractAcrossProcesses(t *testing.T) {
	contract(t, func(t *testing.T) bucket.Bucket {
		root := t.TempDir()
		h := handles{openDir(t, root), make(chan bucket.Bucket, 8)}
		for range cap(h.others) {
			h.others <- openDir(t, root)
		}
		return h
	})
}

// hop puts a front before the store, through which wrap has requests go, and opens the
// bucket there.
func hop(t *testing.T, s *buckettest.S3, wrap func(http.Handler) http.Handler) bucket.Bucket {
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
	return openS3(t, strings.Replace(s.URL(fmt.Sprintf("odd%d", len(t.Name()))), s.Endpoint, server.URL, 1))
}

// TestOddStores writes, reads and lists with stores and hops that people have.
func TestOddStores(t *testing.T) {
	s := startS3(t)
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
			reads(t, b, b)
			if err := bucket.Probe(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadsThroughABrokenLine loses every third reply that may be asked for again.
func TestReadsThroughABrokenLine(t *testing.T) {
	var n atomic.Int64
	b := bucket.Retry(hop(t, startS3(t), func(store http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conditional := r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Match") != ""
			if !conditional && n.Add(1)%3 == 0 {
				w = httptest.NewRecorder()
				defer panic(http.ErrAbortHandler)
			}
			store.ServeHTTP(w, r)
		})
	}), bucket.RetryConfig{Wait: time.Millisecond})
	reads(t, b, b)
}

func BenchmarkDir(b *testing.B) { bench(b, openDir(b, b.TempDir())) }

func BenchmarkS3(b *testing.B) { bench(b, openS3(b, startS3(b).URL("bench"))) }
