package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
)

// TestEachTryIsCounted: what is sent is what the store is asked.
func TestEachTryIsCounted(t *testing.T) {
	asked := int64(0)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "here")
	}))
	defer s.Close()
	b, counted, err := originOpener{log: slog.New(slog.DiscardHandler)}.open(t.Context(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if text, _, err := bucket.ReadAll(t.Context(), bucket.Retry(b, bucket.RetryConfig{}), "key", 10); err != nil || string(text) != "here" {
		t.Fatalf("%q, %v", text, err)
	}
	if got := counted.Counts(); got.Requests != asked || got.BytesIn != 4 {
		t.Errorf("%+v, want %d requests", got, asked)
	}
}
