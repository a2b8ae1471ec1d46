package api

import (
	"bufio"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/operations"
)

// TestDashboardIsForEverybody: the page is shown to whoever comes, as it holds nothing, once; and only it.
func TestDashboardIsForEverybody(t *testing.T) {
	s := New(Config{Node: &node.Node{}})
	s.token = testToken
	h := s.guard(compressed(unrouted(s.mux)), false)
	for path, kind := range map[string]string{"/": "text/html; charset=utf-8", "/web/app.js": "text/javascript; charset=utf-8", "/web/style.css": "text/css; charset=utf-8", "/web/icon.svg": "image/svg+xml"} {
		w := request(h, "GET", path)
		policy := w.Header().Get("Content-Security-Policy")
		if w.Code != 200 || w.Header().Get("Content-Type") != kind || !strings.Contains(policy, "default-src 'none'; script-src 'self'") || strings.Contains(policy, "unsafe") || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
		if again := request(h, "GET", path, "If-None-Match", w.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() > 0 {
			t.Errorf("%s again: %d", path, again.Code)
		}
		if packed := request(h, "GET", path, "Accept-Encoding", "gzip"); w.Body.Len() > 2*packedMin && packed.Body.Len() > w.Body.Len()/2 {
			t.Errorf("%s: %d bytes, packed %d", path, w.Body.Len(), packed.Body.Len())
		}
	}
	for path, want := range map[string]int{"/web/": 404, "/web/web.go": 404, "/web/../api/status": 307, "/index.html": 401, "/api/alone": 401, "/api/history": 401, "/api/events": 401, "/api/farms": 401} {
		if w := request(h, "GET", path); w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
	if w := request(h, "GET", "/api/history", "Authorization", "Bearer "+testToken, "Origin", "https://elsewhere.example"); w.Code != http.StatusForbidden {
		t.Errorf("a page of another origin: %d", w.Code)
	}
}

// TestHistory has what was read in each span, of the last hour.
func TestHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var read int64
		h := &history{moved: func() (Bytes, node.Origin) {
			read += 100
			return Bytes{Farm: read, Origin: 5}, node.Origin{Requests: 1000 - read/1000}
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour+time.Second)
		defer cancel()
		if err := h.keep(ctx); err != nil {
			t.Fatal(err)
		}
		got := h.view()
		if len(got.Samples) != samplesMax || got.Span != 10 {
			t.Fatalf("%d samples of %v s", len(got.Samples), got.Span)
		}
		for i, s := range got.Samples {
			if s.Bytes != (Bytes{Farm: 100}) || s.Requests != 0 || i > 0 && s.At.Sub(got.Samples[i-1].At) != sampleInterval {
				t.Fatalf("sample %d: %+v", i, s)
			}
		}
	})
}

// TestEventsOfAll: who follows all operations is told of those that run, what becomes of them, and of later ones, at once and
// through all that answers pass; and the stream ends with the server.
func TestEventsOfAll(t *testing.T) {
	ops := operations.New(slog.New(slog.DiscardHandler), time.Now)
	s := New(Config{Node: &node.Node{Operations: ops}})
	s.token = testToken
	server := httptest.NewServer(s.guard(compressed(unrouted(s.mux)), false))
	defer server.Close()
	start := func(target string) (end chan error) {
		end = make(chan error)
		if _, err := ops.Start("warm", target, func(context.Context, *operations.Operation) error { return <-end }); err != nil {
			t.Fatal(err)
		}
		return end
	}
	first := start("before")
	r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() string {
		for lines.Scan() {
			var v Operation
			if data, ok := strings.CutPrefix(lines.Text(), "data: {"); ok && json.Unmarshal([]byte("{"+data), &v) == nil {
				return v.Target + " " + string(v.State)
			}
		}
		return "the end"
	}
	expect := func(want string) {
		t.Helper()
		if got := next(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	expect("before running")
	first <- nil
	expect("before done")
	second := start("after")
	expect("after running")
	close(s.stopping)
	expect("the end")
	second <- nil
	if err := ops.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
}
