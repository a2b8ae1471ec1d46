package mesh

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/simulations/lab"
)

// followSize of the disks that are followed.
const followSize = 24 << 20

// seenWithin is how soon a change has to be seen everywhere, on a machine that is not busy.
const seenWithin = 10 * time.Second

// publish imports a disk that no other seed gives.
func publish(t *testing.T, n *lab.Node, name string, seed byte) (i api.Image, sum string) {
	t.Helper()
	path, sum := seededDisk(t, n.Lab().Dir, followSize, seed)
	run(t, n, "image", "import", name, path)
	return get[api.Image](t, n, "/api/images/"+name), sum
}

// standing is how a node stands with a name, once it follows it.
func standing(t *testing.T, n *lab.Node, name string) follow.Standing {
	t.Helper()
	var i api.Image
	if err := n.Get(t.Context(), "/api/images/"+name, &i); err != nil || i.Followed == nil {
		return follow.Standing{}
	}
	return *i.Followed
}

func warm(t *testing.T, n *lab.Node, name string, version uint64) bool {
	t.Helper()
	s := standing(t, n, name)
	return s.State == follow.Warm && s.Version == version
}

// followers starts nodes that follow names.
func followers(t *testing.T, l *lab.Lab, origin, names string, farms ...string) (nodes []*lab.Node) {
	t.Helper()
	for _, farm := range farms {
		n, err := l.Start(t.Context(), farm, origin, "--follow", names)
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// TestTagFollowedByThreeFarms: twelve nodes follow a tag that comes to stand for another
// image, while guests read: all see that soon and have it in the end, which costs the
// store each new chunk about once, and the guests' reads nothing.
func TestTagFollowedByThreeFarms(t *testing.T) {
	l := newLab(t)
	store, err := l.StartStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	publisher := start(t, l, store.URL, "p")[0]
	_, sum := publish(t, publisher, "one", 1)
	run(t, publisher, "image", "tag", "one", "stable")
	var nodes []*lab.Node
	for range 4 {
		nodes = append(nodes, followers(t, l, store.URL, "tag:stable", "a", "b", "c")...)
	}
	for _, n := range nodes {
		until(t, n.Name+" has the tag", func(context.Context) bool { return warm(t, n, "stable", 1) })
	}
	two, other := publish(t, publisher, "two", 2)
	before := make([]int64, len(nodes))
	for i, n := range nodes {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		before[i] = s.Origin.BytesIn
	}
	run(t, publisher, "image", "tag", "two", "stable")
	retagged := time.Now()
	if err := publisher.Stop(); err != nil {
		t.Fatal(err)
	}
	var guests sync.WaitGroup
	for _, n := range nodes[:3] { // one in each farm
		guests.Go(func() {
			for round := range 3 {
				if got, err := read(t.Context(), n, fmt.Sprint("guest", round, "-", n.Name), "one"); err != nil || got != sum {
					t.Errorf("a guest on %s reads %s, %v", n.Name, got, err)
				}
			}
		})
	}
	var seen time.Duration
	for _, n := range nodes {
		until(t, n.Name+" sees the new version", func(context.Context) bool { return standing(t, n, "stable").Version == 2 })
		seen = max(seen, time.Since(retagged))
	}
	for _, n := range nodes {
		until(t, n.Name+" has the new version", func(context.Context) bool { return warm(t, n, "stable", 2) })
	}
	guests.Wait()
	var total int64
	for i, n := range nodes {
		s, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		total += s.Origin.BytesIn - before[i]
		if s.Followed.States[follow.Warm] != 1 || s.Followed.Names != 1 {
			t.Errorf("%s: %+v", n.Name, s.Followed)
		}
		if out := run(t, n, "image", "ls"); !strings.Contains(out, "warm") {
			t.Errorf("image ls on %s: %s", n.Name, out)
		}
	}
	table(t, l)
	t.Logf("seen by all after %s (bar %s); %d stored, %d read from the store: %.3f", seen.Round(100*time.Millisecond), seenWithin, two.Stored, total, float64(total)/float64(two.Stored))
	if total > int64(two.Stored)*110/100 {
		t.Errorf("%d bytes were read from the store, and the new image has %d", total, two.Stored)
	}
	if err := store.Stop(); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes[:3] { // nothing is missing
		if got, err := read(t.Context(), n, fmt.Sprint("after", i), "stable"); err != nil || got != other {
			t.Errorf("a guest on %s reads %s, %v", n.Name, got, err)
		}
	}
}
