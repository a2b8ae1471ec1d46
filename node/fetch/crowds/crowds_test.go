package crowds_test

import (
	"testing"

	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/plan"
)

func TestCrowdRefersOnce(t *testing.T) {
	c := crowds.New[string]("self", 0)
	for _, p := range []plan.Peer{"a", "b", "c", "d", "e"} {
		if to, ok := c.Begin("run", p, true); ok {
			t.Fatalf("%s is referred to %s, who has nothing yet", p, to)
		}
	}
	c.End("run", "a", true)
	if to, ok := c.Begin("run", "f", true); !ok || to != "a" {
		t.Fatalf("the asker beyond four is referred to %q", to)
	}
	if _, ok := c.Begin("run", "f", true); ok {
		t.Fatal("an asker is referred twice")
	}
	c.End("run", "b", true)
	for _, p := range []plan.Peer{"c", "d", "e", "f"} {
		c.End("run", p, false)
	}
	if _, ok := c.Begin("run", "g", true); ok {
		t.Fatal("an asker is referred though nobody else asks")
	}
}

func TestBusyRefersWhoHasTime(t *testing.T) {
	c := crowds.New[int]("self", 2)
	begin := func(run int, p plan.Peer, hasTime bool, want plan.Peer) {
		t.Helper()
		if to, _ := c.Begin(run, p, hasTime); to != want {
			t.Fatalf("run %d: %s is referred to %q, want %q", run, p, to, want)
		}
	}
	begin(1, "a", true, "")
	begin(2, "b", true, "")
	begin(3, "c", true, "self")
	begin(3, "c", true, "") // nobody else has it
	begin(3, "d", false, "")
	c.End(3, "c", true)
	c.End(3, "d", false)
	begin(3, "e", true, "c") // also when it is being sent to nobody any more
	c.End(2, "b", true)
	begin(3, "f", true, "")
}
