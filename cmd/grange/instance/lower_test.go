package instance

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/cenkalti/backoff/v5"

	"github.com/grangemesh/grange/cmd/grange/client"
)

// TestReadsWait: a workload waits for what may be mended, and is told of the rest.
func TestReadsWait(t *testing.T) {
	status := 0
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte("{}"))
	}))
	defer node.Close()
	to, err := client.New(client.Config{Remote: node.URL, Token: "token"})
	if err != nil {
		t.Fatal(err)
	}
	for is, waits := range map[int]bool{
		http.StatusForbidden: true, http.StatusTooManyRequests: true, http.StatusUnprocessableEntity: true, http.StatusInternalServerError: true, http.StatusServiceUnavailable: true,
		http.StatusInsufficientStorage: true, http.StatusNotFound: false, http.StatusBadRequest: false,
	} {
		status = is
		err := new(lowerCmd).read(t.Context(), to, "/api/instances/web/lower", make([]byte, 1))
		if _, ends := errors.AsType[*backoff.PermanentError](err); err == nil || ends == waits {
			t.Errorf("%d: %v, want one that waits: %t", is, err, waits)
		}
	}
}
