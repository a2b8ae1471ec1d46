//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/grangemesh/grange/node/api"
)

// collected are the spans that a collector has taken.
type collected struct {
	mu      sync.Mutex // guards the rest
	spans   []*otlp.Span
	by      map[string]string // which service, by span
	headers http.Header
	refuse  int
}

// ServeHTTP takes what OTLP's exporters send.
func (c *collected) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		body, _ = gzip.NewReader(r.Body)
	}
	b, err := io.ReadAll(body)
	var req collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &req)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers = r.Header
	if err != nil || c.refuse != 0 {
		w.WriteHeader(max(c.refuse, 400))
		return
	}
	for _, of := range req.ResourceSpans {
		who := ""
		for _, a := range of.Resource.Attributes {
			if a.Key == "service.name" || a.Key == "rack" {
				who += a.Value.GetStringValue() + " "
			}
		}
		for _, s := range of.ScopeSpans {
			for _, span := range s.Spans {
				c.by[string(span.SpanId)] = r.URL.Path + " " + who
			}
			c.spans = append(c.spans, s.Spans...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// find returns a span of a name, below another if that is not nil.
func (c *collected) find(name string, below *otlp.Span) *otlp.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.Name == name && (below == nil || bytes.Equal(s.TraceId, below.TraceId) && bytes.Equal(s.ParentSpanId, below.SpanId)) {
			return s
		}
	}
	return nil
}

// await waits for a span of a name below another.
func (c *collected) await(t *testing.T, name string, below *otlp.Span) (s *otlp.Span) {
	t.Helper()
	until(t, name, func() bool {
		s = c.find(name, below)
		return s != nil
	})
	return s
}

func attribute(s *otlp.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// TestAChunksWayIsTraced: a guest's read, whom its node asked, and what that member did for it,
// are of one trace; so are a request, what it was asked below, and its work.
func TestAChunksWayIsTraced(t *testing.T) {
	to := &collected{by: map[string]string{}}
	server := httptest.NewServer(to)
	defer server.Close()
	t.Setenv("GRANGE_TRACES", server.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=lyon")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "rack=r7")
	all := farmOf(t, 2)
	for _, s := range all {
		defer s.signal(t, syscall.SIGTERM)
	}
	all[0].well(t, "image import debian "+noise(t, 1))
	put := to.await(t, "PUT /api/images/{name}", nil)
	if work := to.await(t, "operation import", put); attribute(work, "grange.target") != "debian" || work.EndTimeUnixNano <= work.StartTimeUnixNano {
		t.Errorf("%v", work)
	}
	all[1].well(t, "volume create web1 --from image:debian")
	openQEMU(t, filepath.Join(all[1].dir, "data", "nbd.sock"), "web1").do(t, "read 0 1M")
	serve := to.await(t, "serve", nil)
	var read *otlp.Span
	until(t, "the read that it was for", func() bool {
		to.mu.Lock()
		defer to.mu.Unlock()
		i := slices.IndexFunc(to.spans, func(s *otlp.Span) bool { return bytes.Equal(s.SpanId, serve.ParentSpanId) })
		if i >= 0 {
			read = to.spans[i]
		}
		return i >= 0
	})
	asked := to.find("asked", read)
	if asked == nil {
		asked = to.find("asked to bring in", read)
	}
	if read.Name != "read" || asked == nil || attribute(asked, "grange.peer") == "" || attribute(read, "grange.source") == "" || len(read.ParentSpanId) != 0 {
		t.Errorf("read %v, asked %v", read, asked)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	if who := to.by[string(read.SpanId)]; !strings.HasPrefix(who, "/v1/traces ") || !strings.Contains(who, "grange") || !strings.Contains(who, "r7") || to.headers.Get("X-Tenant") != "lyon" {
		t.Errorf("by %q, %v", who, to.headers)
	}
}

// TestRequestsAreTracedBelowTheirClients, where these say so, and else as the sampler says.
func TestRequestsAreTracedBelowTheirClients(t *testing.T) {
	to := &collected{by: map[string]string{}}
	server := httptest.NewServer(to)
	defer server.Close()
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
	s := serveNode(t, "--traces", server.URL)
	over := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.dir, "data", api.SocketName))
	}}}
	for path, parent := range map[string]string{"/api/cache": "", "/api/status": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", parent)
		resp, err := over.Do(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", resp, err)
		}
		resp.Body.Close()
	}
	s.signal(t, syscall.SIGTERM) // which sends the last
	s.ends(t)
	if len(to.spans) != 1 || to.spans[0].Name != "GET /api/status" || hex.EncodeToString(to.spans[0].TraceId) != "0123456789abcdef0123456789abcdef" {
		t.Errorf("%v", to.spans)
	}
	if code, _, complaint := command(t, "node", "--traces", "127.0.0.1:4318", "--data", t.TempDir()); code != 2 || !strings.Contains(complaint, "http://127.0.0.1:4318") {
		t.Errorf("code %d, %s", code, complaint)
	}
}

// TestACollectorThatRefuses is told of in the log, and harms nobody.
func TestACollectorThatRefuses(t *testing.T) {
	to := &collected{by: map[string]string{}, refuse: http.StatusForbidden}
	server := httptest.NewServer(to)
	defer server.Close()
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	s := serveNode(t, "--traces", server.URL)
	s.well(t, "status")
	s.await(t, "traces are lost")
	s.well(t, "status")
	s.signal(t, syscall.SIGTERM)
	if end := s.ends(t); end.ExitStatus() != 0 {
		t.Errorf("it ended with %v", end)
	}
}
