package moves

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
)

// TestAMoveIsDoneOnce: those who ask while a volume is being attached are told how that goes,
// or that it is not done yet; one that asks when it is over has what failed tried again.
func TestAMoveIsDoneOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := make(Errands)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		m, attached, goOn := &Moves{Errands: e}, 0, make(chan error)
		ask := func() Answer {
			return m.Attach(t.Context(), Request{Name: "disk"}, func(context.Context) (terms.View, error) {
				attached++
				return terms.View{Name: "disk"}, <-goOn
			})
		}
		if a := ask(); a.Done || attached > 0 {
			t.Errorf("nobody does errands: %+v", a)
		}
		synctest.Wait() // it is over
		go func() { ended <- e.Run(ctx) }()
		for range 3 { // each waits answerWait
			if a := ask(); a.Done || attached != 1 {
				t.Errorf("under way: %+v, attached %d times", a, attached)
			}
		}
		told := make(chan Answer, 1)
		for _, err := range []error{content.ErrConflict, nil} {
			go func() { told <- ask() }()
			synctest.Wait()
			goOn <- err
			if a := <-told; !a.Done || a.View.Name != "disk" || (a.Err != "") != (err != nil) {
				t.Errorf("%+v, want %v", a, err)
			}
		}
		if attached != 2 {
			t.Errorf("attached %d times", attached)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
