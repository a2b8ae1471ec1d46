package mesh

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/simulations/lab"
)

// seedStatus is how a seed says that it stands.
func seedStatus(t *testing.T, n *lab.Node) api.Status {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil || s.Seed == nil {
		t.Fatalf("%s: %+v, %v", n.Name, s, err)
	}
	return s
}

// TestSeedFollows: a volunteer's seed fetches what it follows from members, nothing else,
// not even what they ask it for, and serves it when they are gone; another one that has no
// credentials and comes while the origin is away has it from the first. What was sent is
// said, also after a kill, and nothing is sent while that can't be written down.
func TestSeedFollows(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nodes := start(t, l, store.URL, "north", "south")
	founder, south := nodes[0], nodes[1]
	for i, name := range []string{"open-one", "other", "tied"} {
		path, _ := seededDisk(t, l.Dir, followSize, byte(1+i))
		scope := "public"
		if name == "tied" {
			scope = "mesh"
		}
		run(t, founder, "image", "import", name, path, "--scope", scope)
	}
	volunteer := func(more ...string) *lab.Node {
		t.Helper()
		n, err := l.StartAs(t.Context(), "seed", "volunteers", "", append([]string{"--follow", "open-one,tied"}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := volunteer("--monthly", "10GiB", "--upload-rate", "100MiB/s")
	until(t, "the seed has what it follows", func(context.Context) bool { return warm(t, first, "open-one", 1) })
	used := seedStatus(t, first).Cache.Chunks
	if used == 0 || used > followSize/(128<<10)+64 {
		t.Errorf("it holds %d chunks", used)
	}
	run(t, south, "image", "warm", "other") // asks whoever is there
	if err := store.Stop(); err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(run(t, founder, "token", "create", "--role", "seed"))
	smallDisk(t, filepath.Join(l.Dir, "volunteers2"), 128<<20)
	second := volunteer("--monthly", "64MiB", "--join", token)
	if err := south.Stop(); err != nil {
		t.Fatal(err)
	}
	until(t, "another seed has it while the origin is away", func(context.Context) bool { return warm(t, second, "open-one", 1) })
	r := get[api.Resolved](t, second, "/api/resolve/open-one")
	if r.Confirmed || r.Version != 1 || r.Age <= 0 {
		t.Errorf("the name: %+v", r)
	}
	if got := seedStatus(t, first).Cache.Chunks; got != used {
		t.Errorf("it holds %d chunks, and %d before it was asked for others", got, used)
	}
	until(t, "what was sent is said", func(context.Context) bool {
		s := seedStatus(t, first).Seed
		return s.State == "serving" && s.Served > 0 && s.PeersAll > 0 && slices.ContainsFunc(s.Images, func(i seed.ImageView) bool { return i.Name == "open-one" && i.Served > 0 })
	})
	if said := run(t, first, "status"); !strings.Contains(said, "sends") || !strings.Contains(said, "of 10 GiB") || !strings.Contains(said, "open-one") {
		t.Errorf("status says %s", said)
	}
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	run(t, founder, "cache", "evict", "1GiB") // the second seed alone has it
	filler := filepath.Join(second.Data, "filler")
	fillUp(t, filler)
	last := volunteer()
	until(t, "the seed says that its disk is full", func(context.Context) bool { return seedStatus(t, second).Seed.State == "failing" })
	if s := seedStatus(t, second).Seed; s.Served > 0 || !strings.Contains(s.Detail, "no space left") || warm(t, last, "open-one", 1) {
		t.Errorf("it can't write down what it sends, and says %+v", s)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	until(t, "a third seed has it from the second", func(context.Context) bool { return warm(t, last, "open-one", 1) })
	if w := get[api.Status](t, last, "/api/status").Warnings; len(w) > 0 {
		t.Errorf("among seeds it warns of %+v", w)
	}
	keepsItsBook(t, second)
}

// keepsItsBook has a seed killed, which costs it some of its month, and no more than it says.
func keepsItsBook(t *testing.T, n *lab.Node) {
	t.Helper()
	served := seedStatus(t, n).Seed.Served
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := seedStatus(t, n).Seed.Served; served == 0 || again < served || again > served+16<<20 {
		t.Errorf("%d bytes were sent, and %d after a kill", served, again)
	}
}
