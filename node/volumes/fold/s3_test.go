package fold

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/buckettest"
)

// TestFoldsAtASickStore: a real S3 server of which every other write fails, with and
// without being carried out, that is busy, and that is down: no fold thinks that its
// volume is another's, writes go on, and all of it folds once the store is well.
func TestFoldsAtASickStore(t *testing.T) {
	server := buckettest.StartS3(t)
	server.Setenv(t)
	target, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableCompression: true}
	store := &httputil.ReverseProxy{Transport: transport, ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }}
	var sick atomic.Pointer[func(http.ResponseWriter, *http.Request)]
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if meddle := sick.Load(); meddle != nil {
			(*meddle)(w, r)
			return
		}
		store.ServeHTTP(w, r)
	}))
	front.Config.ErrorLog = store.ErrorLog
	front.Start()
	defer transport.CloseIdleConnections()
	defer front.Close()
	location, err := s3.ParseURL(strings.Replace(server.URL("folds"), server.Endpoint, front.URL, 1))
	if err != nil {
		t.Fatal(err)
	}
	origin, err := s3.Open(t.Context(), s3.Config{Location: location})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t).foundAt(t, bucket.Retry(origin, bucket.RetryConfig{Tries: 2, Wait: time.Millisecond, WithinMax: time.Second}))
	dir := filepath.Join(t.TempDir(), "here")
	if err := volume.Create(dir, w.body.ID); err != nil {
		t.Fatal(err)
	}
	vol := w.attach(t, dir, w.record(), 1)
	defer vol.Close()
	cfg := w.config()
	cfg.Journal = vol
	f := New(cfg)
	const patience = 2 * time.Second // with a store that is ill
	shadow, count, failed := make([]byte, diskSize), 0, 0
	illnesses := []func(http.ResponseWriter, *http.Request){
		func(rw http.ResponseWriter, r *http.Request) { // every other write is lost on its way
			if count++; r.Method != http.MethodGet && count%2 == 0 {
				panic(http.ErrAbortHandler)
			}
			store.ServeHTTP(rw, r)
		},
		func(rw http.ResponseWriter, r *http.Request) { // every other reply is, of a write that was carried out
			if count++; r.Method != http.MethodGet && count%2 == 0 {
				store.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			store.ServeHTTP(rw, r)
		},
		func(rw http.ResponseWriter, r *http.Request) { // it is throttled
			if count++; count%2 == 0 {
				rw.Header().Set("Content-Type", "application/xml")
				rw.WriteHeader(http.StatusServiceUnavailable)
				_, _ = rw.Write([]byte("<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"))
				return
			}
			store.ServeHTTP(rw, r)
		},
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, // it is down
	}
	for round, ill := range illnesses {
		sick.Store(&ill)
		for i, want := range []Want{Safe, Chunks, Safe} {
			off := int64(round*13+i*7) * block
			data := bytes.Repeat([]byte{byte(1 + round*3 + i)}, 3*block)
			copy(shadow[off:], data)
			if err := vol.WriteAt(t.Context(), data, off, true); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := f.Run(ctx, want)
			cancel()
			if errors.Is(err, content.ErrFenced) {
				t.Fatalf("illness %d: %v", round, err)
			} else if err != nil {
				failed++
			}
		}
		sick.Store(nil)
		var err error
		for range 2 {
			err = f.Run(t.Context(), Safe)
		}
		if err != nil {
			t.Fatalf("the store is well, and after illness %d: %v", round, err)
		}
		got := make([]byte, diskSize)
		if err := vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, shadow) {
			t.Fatalf("after illness %d the guest reads other bytes, or not: %v", round, err)
		}
		r, err := w.catalog.Get(t.Context(), content.KindVolume, "disk")
		if err != nil {
			t.Fatal(err)
		}
		now, err := catalog.DecodeVolume(content.NewCodec(), r.Body)
		if err != nil || !bytes.Equal(w.readElsewhere(t, now), shadow) {
			t.Fatalf("after illness %d another node reads other bytes: %v", round, err)
		}
	}
	if t.Logf("%d folds failed", failed); failed == 0 {
		t.Error("the store was never ill")
	}
}
