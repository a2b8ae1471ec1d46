package moves

import (
	"context"
	"fmt"
	"testing"

	"github.com/grangemesh/grange/node/volumes/terms"
)

// TestMovesAreForgotten: a move that is asked for again is done once, however many came
// since, up to a limit; no more than that are remembered.
func TestMovesAreForgotten(t *testing.T) {
	e := make(Errands)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	m, attached := New(e), 0
	move := func(n int) {
		t.Helper()
		name := fmt.Sprint(n)
		a := m.Attach(t.Context(), Request{Name: name, Move: 7}, func(context.Context) (terms.View, error) {
			attached++
			return terms.View{Name: name}, nil
		})
		if !a.Done || a.View.Name != name {
			t.Fatalf("%s: %+v", name, a)
		}
	}
	for n := range 3 * keptMax {
		move(n)
		move(n)
		move(max(0, n-keptMax+1))
	}
	if attached != 3*keptMax || len(m.of) != keptMax || len(m.over) != keptMax {
		t.Errorf("%d were attached; %d and %d are remembered", attached, len(m.of), len(m.over))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
