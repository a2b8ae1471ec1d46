package crowds_test

import (
	"testing"

	"github.com/grangemesh/grange/node/fetch/crowds"
	"github.com/grangemesh/grange/node/fetch/plan"
)

func TestCrowdRefersOnce(t *testing.T) {
	c := crowds.Of[string]{}
	for _, p := range []plan.Peer{"a", "b", "c", "d", "e"} {
		if to, ok := c.Begin("run", p); ok {
			t.Fatalf("%s is referred to %s, who has nothing yet", p, to)
		}
	}
	c.End("run", "a", true)
	if to, ok := c.Begin("run", "f"); !ok || to != "a" {
		t.Fatalf("the asker beyond four is referred to %q", to)
	}
	if _, ok := c.Begin("run", "f"); ok {
		t.Fatal("an asker is referred twice")
	}
	c.End("run", "b", true)
	for _, p := range []plan.Peer{"c", "d", "e", "f"} {
		c.End("run", p, false)
	}
	if _, ok := c.Begin("run", "g"); ok {
		t.Fatal("an asker is referred though nobody else asks")
	}
	c.End("run", "g", true)
	if len(c) > 0 {
		t.Fatal("a crowd of nobody is remembered")
	}
}
