package operations

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"
)

// TestResults are shown of an operation that is asked for, by its kind, and kept of the last one that did the same.
func TestResults(t *testing.T) {
	o := New(slog.New(slog.DiscardHandler), time.Now)
	report := func(target string) View {
		t.Helper()
		v, err := o.Start("count", target, func(_ context.Context, op *Operation) error { return op.Report([]int{1, 2}) })
		if err == nil {
			v, err = o.Wait(t.Context(), v.ID)
		}
		if want := `{"count":[1,2]}`; err != nil || string(v.Result) != want {
			t.Fatalf("%s, %v, want %s", v.Result, err, want)
		}
		return v
	}
	first, other, last := report("a"), report("b"), report("a")
	if slices.ContainsFunc(o.List(), func(v View) bool { return v.Result != nil }) {
		t.Error("a list has results")
	}
	for id, kept := range map[string]bool{first.ID: false, other.ID: true, last.ID: true} {
		if v, err := o.Get(id); err != nil || v.Result != nil != kept {
			t.Errorf("%s %s: %s, %v, want kept %t", v.Target, id, v.Result, err, kept)
		}
	}
}
