package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

const (
	// frontPorts are taken one by one by the fronts of a store.
	frontPorts = storePort + 1
	// storePrefix is where in its bucket the store's URL begins.
	storePrefix = "farm"
)

// Front is another address of a store. It counts the bytes of each object that
// come and go, and can be told to meddle with requests. It ends with the lab.
type Front struct {
	// URL is what --origin takes.
	URL string

	server *http.Server
	ended  chan error

	mu     sync.Mutex // guards what follows
	meddle Meddler
	sent   map[string]int64 // by key
	taken  map[string]int64
}

// Meddler deals with a request for a key, "" for a listing. It may pass it on to
// the store, answer itself, or do both in part.
type Meddler func(key string, w http.ResponseWriter, r *http.Request, store http.Handler)

// Front opens another address of the store, which need not run.
func (s *Store) Front(ctx context.Context) (*Front, error) {
	address := fmt.Sprintf("%s:%d", s.host.Addr(), frontPorts+len(s.lab.fronts))
	l, err := s.host.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	f := &Front{URL: storeURL(storeBucket, address), ended: make(chan error, 1), sent: map[string]int64{}, taken: map[string]int64{}}
	f.server = &http.Server{Handler: f.handler(s)}
	go func() { f.ended <- f.server.Serve(l) }()
	s.lab.fronts = append(s.lab.fronts, f)
	return f, nil
}

// storeURL is what --origin takes for a bucket at an address.
func storeURL(bucket, address string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=http://%s&region=us-east-1&path-style=true", bucket, storePrefix, address)
}

func (f *Front) handler(s *Store) http.Handler {
	target := &url.URL{Scheme: "http", Host: fmt.Sprintf("%s:%d", s.host.Addr(), storePort)}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		return s.host.Dial(ctx, network, address)
	}
	store := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // which is signed
		},
		Transport:    &http.Transport{DialContext: dial, DisableCompression: true, MaxIdleConnsPerHost: 32},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"+storeBucket), "/"+storePrefix+"/")
		f.mu.Lock()
		meddle := f.meddle
		f.mu.Unlock()
		if r.Body != nil {
			r.Body = &countedBody{r.Body, func(n int) { f.count(f.taken, key, n) }}
		}
		w = &countedAnswer{w, func(n int) { f.count(f.sent, key, n) }}
		if meddle == nil {
			store.ServeHTTP(w, r)
			return
		}
		meddle(key, w, r, store)
	})
}

func (f *Front) count(counts map[string]int64, key string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts[key] += int64(n)
}

// Meddle lets each later request go through m; nil passes all on.
func (f *Front) Meddle(m Meddler) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.meddle = m
}

// Sent returns the bytes that readers got of the objects under a prefix, and
// Taken those that came in.
func (f *Front) Sent(prefix string) int64 { return f.sum(f.sent, prefix) }

// Taken returns the bytes that came in for the objects under a prefix.
func (f *Front) Taken(prefix string) int64 { return f.sum(f.taken, prefix) }

func (f *Front) sum(counts map[string]int64, prefix string) (total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, n := range counts {
		if strings.HasPrefix(key, prefix) {
			total += n
		}
	}
	return total
}

func (f *Front) close() error {
	err := f.server.Close()
	if end := <-f.ended; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

type countedBody struct {
	io.ReadCloser
	count func(int)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count(n)
	return n, err
}

type countedAnswer struct {
	http.ResponseWriter
	count func(int)
}

func (a *countedAnswer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.count(n)
	return n, err
}

// Unwrap lets http.ResponseController through.
func (a *countedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
