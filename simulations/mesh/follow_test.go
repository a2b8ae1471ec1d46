package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
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

// TestWarmAll: all nodes of a farm warm an image, one that is away is named, and who holds
// how much is shown; an operation that is cancelled ends on all.
func TestWarmAll(t *testing.T) {
	l := newLab(t)
	store, f := front(t, l)
	publisher := start(t, l, store.URL, "p")[0]
	image, _ := publish(t, publisher, "disk", 1)
	nodes := start(t, l, f.URL, "a", "a", "a", "b")
	out := run(t, nodes[0], "image", "warm", "disk", "--all")
	op := get[[]api.Operation](t, nodes[0], "/api/operations")[1] // after it comes that of the node itself
	for name, n := range op.Nodes {
		if n.State != "done" || n.Done == 0 || n.Done != n.Total {
			t.Errorf("%s: %+v", name, n)
		}
	}
	if !strings.Contains(out, "3 of 3 nodes have it") || len(op.Nodes) != 3 || op.Done != op.Total {
		t.Errorf("warm --all: %s: %+v", out, op)
	}
	held := map[string]uint64{}
	until(t, "all of the farm are shown to hold it", func(context.Context) bool {
		for _, h := range get[api.Image](t, nodes[1], "/api/images/disk?holders=true").Holders {
			held[h.Farm+" "+h.ID] = h.Chunks
		}
		whole := 0
		for _, chunks := range held {
			if chunks == image.Chunks {
				whole++
			}
		}
		return whole == 4
	})
	if len(held) != 4 {
		t.Errorf("held by %v", held)
	}
	if out := run(t, nodes[1], "image", "show", "disk"); strings.Count(out, "100 %") != 4 || !strings.Contains(out, "LAN") && !strings.Contains(out, "direct") {
		t.Errorf("image show: %s", out)
	}
	publish(t, publisher, "more", 2)
	away := get[api.Status](t, nodes[2], "/api/status").Self.ID
	if err := nodes[2].Kill(); err != nil {
		t.Fatal(err)
	}
	said, err := nodes[0].Run(t.Context(), "image", "warm", "more", "--all")
	if err == nil || !strings.Contains(err.Error(), "1 of 3 nodes have not got it") || !strings.Contains(err.Error(), away) {
		t.Errorf("with one that is away: %s, %v", said, err)
	}
	if ops := get[[]api.Operation](t, nodes[1], "/api/operations"); len(ops) != 2 || ops[0].State != "done" {
		t.Errorf("on one that is here: %+v", ops)
	}
}

// TestWarmAllIsCancelled on all nodes, and nothing is that somebody else has begun, or waits
// for still.
func TestWarmAllIsCancelled(t *testing.T) {
	l := newLab(t)
	store, f := front(t, l)
	publisher := start(t, l, store.URL, "p")[0]
	publish(t, publisher, "disk", 1)
	nodes := start(t, l, f.URL, "a", "a")
	if err := publisher.Stop(); err != nil {
		t.Fatal(err)
	}
	f.Meddle(func(key string, w http.ResponseWriter, r *http.Request, s http.Handler) {
		if strings.HasPrefix(key, "packs/") { // never comes
			<-r.Context().Done()
			return
		}
		s.ServeHTTP(w, r)
	})
	warmAll := func(n *lab.Node) (op api.Operation) {
		t.Helper()
		_, body, err := n.Ask(t.Context(), "POST", "/api/images/disk/warm?all=true", "")
		if err == nil {
			err = json.Unmarshal(body, &op)
		}
		if err != nil {
			t.Fatal(err)
		}
		return op
	}
	are := func(running, cancelled int) func(context.Context) bool {
		return func(context.Context) bool {
			states := map[string]int{"running": 0, "cancelled": 0}
			for _, n := range nodes {
				for _, op := range get[[]api.Operation](t, n, "/api/operations") {
					states[string(op.State)]++
				}
			}
			return maps.Equal(states, map[string]int{"running": running, "cancelled": cancelled})
		}
	}
	first := warmAll(nodes[0])
	until(t, "both warm it", are(3, 0))
	second := warmAll(nodes[1])
	until(t, "another waits for that", func(context.Context) bool {
		return len(get[api.Operation](t, nodes[1], "/api/operations/"+second.ID).Nodes) == 2
	})
	run(t, nodes[1], "operation", "cancel", second.ID)
	until(t, "that one alone is cancelled", are(3, 1))
	third := warmAll(nodes[1])
	run(t, nodes[0], "operation", "cancel", first.ID)
	until(t, "the one that is left has it warmed still", are(3, 4))
	run(t, nodes[1], "operation", "cancel", third.ID)
	until(t, "all is cancelled", are(0, 7))
}

// TestFollowerIsKilled in the middle of a fetch: it goes on where it was, and the old
// version is there until the new one is; a name that is deleted is let go.
func TestFollowerIsKilled(t *testing.T) {
	l := newLab(t)
	store, f := front(t, l)
	publisher := start(t, l, store.URL, "p")[0]
	one, sum := publish(t, publisher, "one", 1)
	two, other := publish(t, publisher, "two", 2)
	run(t, publisher, "image", "tag", "one", "stable")
	n := followers(t, l, f.URL, "tag:stable", "a")[0]
	until(t, "the tag is warm", func(context.Context) bool { return warm(t, n, "stable", 1) })
	slow := make(chan struct{})
	var packs atomic.Int64
	f.Meddle(func(key string, w http.ResponseWriter, r *http.Request, s http.Handler) {
		if strings.HasPrefix(key, "packs/") && packs.Add(1) > 6 { // a part comes
			select {
			case <-slow:
			case <-r.Context().Done():
				return
			}
		}
		s.ServeHTTP(w, r)
	})
	run(t, publisher, "image", "tag", "two", "stable")
	if err := publisher.Stop(); err != nil {
		t.Fatal(err)
	}
	until(t, "some has come", func(context.Context) bool {
		s := standing(t, n, "stable")
		return s.State == follow.Fetching && 10*s.Done > s.Total && packs.Load() > 6 // more than what is read for a second time may be
	})
	if s := standing(t, n, "stable"); !s.Older || s.Done >= s.Total {
		t.Errorf("%+v", s)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	close(slow)
	sent := f.Sent("packs/")
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the new version is warm", func(context.Context) bool { return warm(t, n, "stable", 2) })
	t.Logf("stored %d and %d; sent %d before it was killed, %d after", one.Stored, two.Stored, sent, f.Sent("packs/")-sent)
	if after := f.Sent("packs/") - sent; after >= int64(two.Stored)*95/100 {
		t.Errorf("%d bytes were read after the restart, of %d: what had come was read again", after, two.Stored)
	}
	if got, err := read(t.Context(), n, "v2", "stable"); err != nil || got != other {
		t.Errorf("a guest reads %s, %v", got, err)
	}
	pinned := metric(t, n, "grange_cache_pinned_chunks")
	if err := publisher.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, publisher, "image", "rm", "stable")
	until(t, "what was deleted is let go", func(context.Context) bool { return metric(t, n, "grange_cache_pinned_chunks") == 0 })
	if got, err := read(t.Context(), n, "v1", "one"); err != nil || got != sum || pinned == 0 {
		t.Errorf("a guest reads %s of the old one, %v; %g were pinned", got, err, pinned)
	}
}
