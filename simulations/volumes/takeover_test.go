package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// loss is how the node of a volume is lost while clients write to it.
type loss struct {
	name string
	lose func(ctx context.Context, n *lab.Node) error
	back func(ctx context.Context, n *lab.Node) error
}

func losses() []loss {
	return []loss{
		{"alive", func(context.Context, *lab.Node) error { return nil }, func(context.Context, *lab.Node) error { return nil }},
		{"killed", func(_ context.Context, n *lab.Node) error { return n.Kill() }, func(ctx context.Context, n *lab.Node) error { return n.Restart(ctx) }},
		{"stopped", func(_ context.Context, n *lab.Node) error { return n.Signal(syscall.SIGSTOP) }, func(_ context.Context, n *lab.Node) error { return n.Signal(syscall.SIGCONT) }},
		{"cut off", func(ctx context.Context, n *lab.Node) error { return n.Host.Unplug(ctx) }, func(ctx context.Context, n *lab.Node) error { return n.Host.Plug(ctx) }},
	}
}

// TestTakeover: a client writes and flushes without pause, and logs what is acknowledged,
// while its node is lost, or is not, and another takes the volume over. What was acknowledged is at
// the new writer (farm:2, origin), or in the orphan snapshot that the old node keeps
// (local). The old node, back, acknowledges nothing any more.
func TestTakeover(t *testing.T) {
	t.Parallel()
	var table []*rounds
	t.Cleanup(func() { // also of those that were given up
		t.Log("policy    loss      rounds  flushes acknowledged  taken over in (median)  lost")
		for _, r := range table {
			t.Log(r.row())
		}
	})
	for _, policy := range []string{"local", "farm:2", "origin"} {
		for _, how := range losses() {
			r := &rounds{policy: policy, loss: how}
			table = append(table, r)
			t.Run(policy+"/"+how.name, func(t *testing.T) {
				r.farm = newFarm(t, 4)
				for n := range soak.Rounds(100) {
					r.one(fmt.Sprintf("%s-%s-%d", strings.ReplaceAll(policy, ":", ""), how.name[:3], n), n)
				}
			})
		}
	}
}

// rounds count what came of the losses of nodes.
type rounds struct {
	*farm
	policy              string
	loss                loss
	done, flushes, lost int
	stalls              []time.Duration
}

func (r *rounds) row() string {
	slices.Sort(r.stalls)
	median := time.Duration(0)
	if n := len(r.stalls); n > 0 {
		median = r.stalls[n/2]
	}
	return fmt.Sprintf("%-8s  %-8s  %6d  %20d  %22s  %4d", r.policy, r.loss.name, r.done, r.flushes, median.Round(time.Millisecond), r.lost)
}

// one loses the node of a volume, and has another take it over.
func (r *rounds) one(name string, n int) {
	r.Helper()
	old, next := r.nodes[1+n%3], r.nodes[1+(n+1)%3] // the first brings the others in
	device := r.create(old, name, "--size", "1MiB", "--durability", r.policy)
	w := newWriter(1<<20, uint64(n))
	ended := r.write(w, device, 20)
	if err := r.loss.lose(r.Context(), old); err != nil {
		r.Fatal(err)
	}
	began := time.Now()
	var taken, why string
	until(r.T, "another node takes "+name+" over", func(ctx context.Context) bool {
		out, err := next.Run(ctx, "volume", "attach", name, "--takeover", "--transport", "nbd")
		taken = strings.TrimSpace(out)
		if err != nil && err.Error() != why {
			why = err.Error()
			r.Log(why)
		}
		return err == nil
	})
	r.stalls = append(r.stalls, time.Since(began))
	disk := r.contents(taken)
	if err := r.loss.back(r.Context(), old); err != nil {
		r.Fatal(err)
	}
	r.silent(old, name, ended)
	at := w // what it has got acknowledged by the end, also from a node that was fenced
	if r.policy == "local" {
		at = w.older()
	}
	if err := at.lost(disk); err != nil {
		r.lost++
		r.Errorf("%s: the new writer: %v", name, err)
	}
	if r.policy == "local" {
		left := r.run(old, "volume", "attach", name, "--readonly", "--transport", "nbd")
		if err := w.lost(r.contents(left)); err != nil {
			r.lost++
			r.Errorf("%s: what stays behind: %v", name, err)
		}
		r.orphan(next, name)
		r.run(old, "volume", "rm", name, "--force", "--purge")
	}
	r.done++
	r.flushes += w.flush
	r.run(next, "volume", "rm", name, "--purge", "--force")
}

// orphan waits until the mesh knows of what the old node has kept.
func (r *rounds) orphan(n *lab.Node, name string) {
	r.Helper()
	r.orphanOf(n, name, 1)
}

// orphanOf waits for that of an epoch.
func (f *farm) orphanOf(n *lab.Node, name string, epoch uint64) {
	f.Helper()
	until(f.T, "the orphan of "+name+" has a name", func(ctx context.Context) bool {
		var s api.Snapshot
		return n.Get(ctx, fmt.Sprintf("/api/snapshots/%s@e%d-orphan", name, epoch), &s) == nil && s.Orphan && s.Volume == name
	})
}

// silent waits until the old writer's client has its error, and the node says that it has
// the volume no more.
func (r *rounds) silent(old *lab.Node, name string, ended <-chan error) {
	r.Helper()
	select {
	case err := <-ended:
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.Errorf("%s: the old node neither acknowledges nor refuses: %v", name, err)
		}
	case <-time.After(patience):
		r.Fatalf("%s: the old node acknowledges still", name)
	}
	until(r.T, "the old node knows that "+name+" was taken", func(ctx context.Context) bool {
		for _, v := range get[[]api.Volume](r.T, old, "/api/volumes") {
			if v.Name == name && v.State == "attached" {
				return false
			}
		}
		return true
	})
}
