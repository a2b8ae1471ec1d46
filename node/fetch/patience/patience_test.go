package patience

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestBlocked: while several reads wait it counts once, from the first on, and those that wait still count.
func TestBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Waits
		var all sync.WaitGroup
		defer all.Wait()
		read := func(begins, takes time.Duration) {
			<-time.After(begins)
			_ = w.Try(t.Context(), Limits{Back: &Bell{}, Again: func(int) time.Duration { return 0 }, Most: time.Hour, MayCome: func(error) bool { return false }}, func(context.Context) error {
				<-time.After(takes)
				return nil
			})
		}
		all.Go(func() { read(0, time.Second) })
		all.Go(func() { read(time.Second/2, time.Second) })
		read(3*time.Second, time.Second)
		if got := w.Now().Blocked; got != 2500*time.Millisecond {
			t.Errorf("%v of two reads for 1.5 s, and one for 1 s", got)
		}
		all.Go(func() { read(0, time.Second) })
		synctest.Wait()
		<-time.After(time.Second / 4)
		if got := w.Now().Blocked; got != 2750*time.Millisecond {
			t.Errorf("%v, 0.25 s later", got)
		}
	})
}
