package api

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/operations"
)

// TestEventsHaveIDs: a client that comes back with the last one's is told that there is
// no more, and one with an older one gets the end.
func TestEventsHaveIDs(t *testing.T) {
	ops := operations.New(slog.New(slog.DiscardHandler), time.Now)
	v, err := ops.Start("import", "x", func(_ context.Context, op *operations.Operation) error {
		op.Update(func(v *operations.View) { v.Done = 1 })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ops.Wait(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	s := New(Config{Node: &node.Node{Operations: ops}})
	h := s.guard(unrouted(s.mux), true)
	path := "http://node/api/operations/" + v.ID + "/events"
	w := request(h, "GET", path)
	if w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), "id: 3\nevent: progress\ndata: {") || w.Header().Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}
	if w := request(h, "GET", path, "Last-Event-ID", "2"); w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), "id: 3\n") {
		t.Errorf("behind an older event: %d %q", w.Code, w.Body)
	}
	if w := request(h, "GET", path, "Last-Event-ID", "3"); w.Code != http.StatusNoContent || w.Body.Len() > 0 {
		t.Errorf("behind the last event: %d %q", w.Code, w.Body)
	}
}

// TestCancelAnswers with the operation, as it is then.
func TestCancelAnswers(t *testing.T) {
	ops := operations.New(slog.New(slog.DiscardHandler), time.Now)
	v, err := ops.Start("import", "x", func(ctx context.Context, _ *operations.Operation) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Node: &node.Node{Operations: ops}})
	w := request(s.guard(unrouted(s.mux), true), "DELETE", "http://node/api/operations/"+v.ID)
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"state":"cancelled"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
