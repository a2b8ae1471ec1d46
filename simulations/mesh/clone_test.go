package mesh

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
)

// TestCopiedNodeOnAnotherHost: the data folder of a node is copied and started on another
// host of its farm, then of another one: it says so and serves nothing. With the first
// away the copy serves; when that is back one of the two does, and goes on.
func TestCopiedNodeOnAnotherHost(t *testing.T) {
	l := newLab(t)
	first := start(t, l, "", "north", "north", "south")[1]
	var c *lab.Node
	for _, farm := range []string{"north", "south"} {
		var err error
		if c, err = l.Copy(t.Context(), first, farm); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(t.Context()); err == nil {
			t.Fatalf("the copy on %s serves", farm)
		}
		said := c.Tail(3)
		if !strings.Contains(said, "another node has the identity of this one") || !strings.Contains(said, first.Host.Addr().String()) {
			t.Errorf("the copy on %s says %s", farm, said)
		}
	}
	if s, err := first.Status(t.Context()); err != nil || !s.Ready {
		t.Errorf("the first: %+v, %v", s, err)
	}
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatalf("with the first away the copy does not serve: %v", err)
	}
	_ = first.Restart(t.Context()) // it may be refused before it is ready
	serving := func() (n int) {
		for _, x := range []*lab.Node{first, c} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if s, err := x.Status(ctx); err == nil && s.Self.ID != "" {
				n++
			}
			cancel()
		}
		return n
	}
	await(t, "one of the two serves", func() bool { return serving() == 1 })
	for quiet := time.After(3 * time.Second); ; {
		if n := serving(); n > 1 { // none says so in time on a slow machine
			t.Fatalf("%d of the two serve", n)
		}
		select {
		case <-quiet:
			await(t, "one of the two serves still", func() bool { return serving() == 1 })
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}
