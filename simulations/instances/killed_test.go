package instances

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// writer is a workload that writes numbers to a file, each once the one before is on disk, and begins behind the last.
const writer = `{"no_port":true,"ready":"none","grace_seconds":10,"command":["/bin/sh","-c","n=$(tail -n 1 log 2>/dev/null); n=${n:-0}; while :; do n=$((n+1)); echo $n >> log; sync -d log; sleep 0.05; done"]}`

// TestNodesAreKilled: whatever a node does when it is killed, all that it runs is right afterwards: what ran is the same
// process, no port is given twice, nothing is left running that nobody knows of, and what was written stays.
func TestNodesAreKilled(t *testing.T) {
	_, nodes := farms(t, "a")
	n := nodes[0]
	stranger := n.Host.Command(t.Context(), "sleep", "100000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Process.Kill(); _ = stranger.Wait() })
	names := make([]string, soak.Of(8, 100))
	for k := range names {
		names[k] = fmt.Sprint("w", k)
	}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for round := range soak.Rounds(20) {
		var asking sync.WaitGroup
		for _, name := range names {
			verb, seed := []string{"", "hibernate", "wake", "deprovision"}[random.IntN(4)], random.IntN(2000)
			asking.Go(func() {
				<-time.After(time.Duration(seed) * time.Millisecond)
				if verb == "" {
					_, _ = ask(t, n, http.MethodPut, name, writer)
				} else {
					_, _ = ask(t, n, http.MethodPost, name+"/"+verb, "")
				}
			})
		}
		<-time.After(time.Duration(random.IntN(2500)) * time.Millisecond)
		before := running(t, n)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		asking.Wait()
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		settled(t, n)
		right(t, n, round, before)
	}
	if count, err := n.Metric(t.Context(), "grange_instances"); err != nil || int(count) != len(instances(t, n)) {
		t.Errorf("a metric says that there are %v instances, of %d, %v", count, len(instances(t, n)), err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", stranger.Process.Pid)); err != nil || len(b) == 0 { // one that has ended has none
		t.Errorf("a process that is no instance's was ended: %v", err)
	}
}

// instances are all of a node.
func instances(t *testing.T, n *lab.Node) (all []api.Instance) {
	t.Helper()
	if err := n.Get(t.Context(), "/api/instances?limit=1000", &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// running are the instances that run, and nobody is at, by name.
func running(t *testing.T, n *lab.Node) map[string]int {
	out := map[string]int{}
	for _, i := range instances(t, n) {
		if i.State == "provisioned" {
			out[i.Name] = i.PID
		}
	}
	return out
}

// settled waits until nothing is being done.
func settled(t *testing.T, n *lab.Node) {
	t.Helper()
	for tick := time.Tick(50 * time.Millisecond); ; <-tick {
		if !slices.ContainsFunc(instances(t, n), func(i api.Instance) bool { return i.Step != "" || i.State == "crashed" }) {
			return
		}
	}
}

// right fails where an instance is not as it has to be.
func right(t *testing.T, n *lab.Node, round int, before map[string]int) {
	t.Helper()
	runs, ports := workloads(n.Data), map[int]string{}
	for _, i := range instances(t, n) {
		dir := filepath.Dir(i.Dir)
		switch i.State {
		case "provisioned":
			if !slices.Contains(runs[dir], i.PID) {
				t.Errorf("round %d: %s is said to run as %d, and %v do", round, i.Name, i.PID, runs[dir])
			}
			if was, ok := before[i.Name]; ok && was != i.PID {
				t.Errorf("round %d: %s ran as %d, and is %d now", round, i.Name, was, i.PID)
			}
		case "hibernated":
			if len(runs[dir]) > 0 {
				t.Errorf("round %d: %s is hibernated, and %v run", round, i.Name, runs[dir])
			}
		default:
			t.Errorf("round %d: %s is %s: %s", round, i.Name, i.State, i.Detail)
		}
		if other, ok := ports[i.Port]; ok && i.Port != 0 {
			t.Errorf("round %d: %s and %s have port %d", round, i.Name, other, i.Port)
		}
		ports[i.Port] = i.Name
		delete(runs, dir)
		counts(t, round, i)
	}
	for dir, pids := range runs {
		t.Errorf("round %d: nobody knows of %v of %s", round, pids, dir)
	}
}

// counts fails unless the numbers that an instance has written are those from 1 on.
func counts(t *testing.T, round int, i api.Instance) {
	b, err := os.ReadFile(filepath.Join(i.Dir, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for k, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		if line != fmt.Sprint(k+1) && line != "" {
			t.Errorf("round %d: line %d of %s is %q", round, k+1, i.Name, line)
			return
		}
	}
}
