package instances

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// counted has a guest count its boots, and write and say how long it is up, again and again.
const counted = `root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.run_success_action=none systemd.run_failure_action=none systemd.run="/bin/sh -c 'echo x >> /boots; sync; exec > /dev/ttyS0; b=boots; echo $b $(wc -l < /boots); while :; do read up rest < /proc/uptime; echo $up > /up; sync; echo up $up; sleep 1; done'"`

// TestMachineSleeps: a machine boots from an image that its node never held, sleeps with what it has in memory, and keeps its
// disk through all of it.
func TestMachineSleeps(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := debian.Build(t.Context(), filepath.Join(cache, "grange", "debian"), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	front, nodes := farms(t, "a", "b")
	b := nodes[1]
	if _, err := nodes[0].Run(t.Context(), "image", "import", "debian", image.Disk); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(map[string]any{"from": "image:debian", "ready": "log:boots ", "ready_seconds": 600, "memory": 512 << 20, "kernel": image.Kernel, "initrd": image.Initrd, "append": counted})
	if err != nil {
		t.Fatal(err)
	}
	before := front.Sent("packs/")
	began := time.Now()
	i := reach(t, b, http.MethodPut, "vm", string(spec), "provisioned")
	var v api.Volume
	if err := b.Get(t.Context(), "/api/volumes/vm", &v); err != nil {
		t.Fatal(err)
	}
	t.Logf("it has booted after %v, of which reads of its disk waited %v s; read of that: %+v, of which the store sent %d bytes", time.Since(began), v.Blocked, v.Bytes, front.Sent("packs/")-before)
	if v.Blocked <= 0 || v.Blocked > time.Since(began).Seconds() {
		t.Errorf("reads have waited %v s for what was not here", v.Blocked)
	}
	up := uptime(t, b, i, 0)
	reach(t, b, http.MethodPost, "vm/hibernate", "", "hibernated")
	if _, err := os.Stat(filepath.Join(filepath.Dir(i.Dir), "memory")); err != nil {
		t.Errorf("its memory is not kept: %v", err)
	}
	began = time.Now()
	i = reach(t, b, http.MethodPost, "vm/wake", "", "provisioned")
	t.Logf("it wakes within %v", time.Since(began))
	if later := uptime(t, b, i, up); later < up {
		t.Errorf("up for %v s, and %v s after it has slept", up, later)
	}
	killedAsleep(t, b)
	for range soak.Of(0, 1) {
		rolledBack(t, b)
		reach(t, b, http.MethodPost, "vm/deprovision", "", "unprovisioned")
		reach(t, b, http.MethodPut, "vm", string(spec), "provisioned")
	}
	if i, err := ask(t, b, http.MethodPost, "vm/obliterate", ""); err != nil {
		t.Fatal(err)
	} else {
		gone(t, b, i.Name)
	}
	if status, answer, err := b.Ask(t.Context(), http.MethodGet, "/api/volumes/vm", ""); err != nil || status != http.StatusNotFound {
		t.Errorf("its volume: %d %s, %v", status, answer, err)
	}
}

// killedAsleep kills a node while it has a machine sleep, or wake: the machine goes on from its memory, or boots anew from its
// disk, and what it has written there stays.
func killedAsleep(t *testing.T, n *lab.Node) {
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for round := range soak.Of(2, 20) {
		was := boots(t, n)
		for _, verb := range []string{"hibernate", "wake"} {
			after := time.Duration(random.IntN(2500)) * time.Millisecond
			if i, err := ask(t, n, http.MethodPost, "vm/"+verb, ""); err != nil {
				t.Fatalf("round %d: %s what is %s: %v", round, verb, i.State, err)
			}
			<-time.After(after)
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			settled(t, n)
			i, err := ask(t, n, http.MethodGet, "vm", "")
			t.Logf("round %d: killed %v after %s: it is %s, %v", round, after, verb, i.State, err)
			if verb == "hibernate" && i.State == "provisioned" {
				break // it never began
			}
		}
		i := reach(t, n, http.MethodPost, "vm/wake", "", "provisioned")
		if runs := workloads(n.Data)[filepath.Dir(i.Dir)]; !slices.Equal(runs, []int{i.PID}) {
			t.Errorf("round %d: %d is said to run, and %v do", round, i.PID, runs)
		}
		uptime(t, n, i, 0)
		if is := boots(t, n); is != was && is != was+1 {
			t.Errorf("round %d: it has booted %d times, and %d before", round, is, was)
		}
	}
}

// rolledBack has the disk of a machine that sleeps be rolled back: it boots anew.
func rolledBack(t *testing.T, n *lab.Node) {
	was := boots(t, n)
	status, answer, err := n.Ask(t.Context(), http.MethodPost, "/api/volumes/vm/snapshots", "{}")
	if err != nil || status/100 != 2 {
		t.Fatalf("%d %s, %v", status, answer, err)
	}
	var s api.Snapshot
	if err := json.Unmarshal(answer, &s); err != nil {
		t.Fatal(err)
	}
	i := reach(t, n, http.MethodGet, "vm", "", "provisioned")
	uptime(t, n, i, uptime(t, n, i, 0)+1) // it has written since
	reach(t, n, http.MethodPost, "vm/hibernate", "", "hibernated")
	if _, err := n.Run(t.Context(), "volume", "rollback", s.ID); err != nil {
		t.Fatal(err)
	}
	reach(t, n, http.MethodPost, "vm/wake", "", "provisioned")
	if is := boots(t, n); is != was+1 {
		t.Errorf("it has booted %d times, and %d before its disk was rolled back", is, was)
	}
}

// boots is how often a machine has said last that it has booted.
func boots(t *testing.T, n *lab.Node) (count int) {
	t.Helper()
	_, said, err := n.Ask(t.Context(), http.MethodGet, "/api/instances/vm/logs", "")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(said)) {
		_, _ = fmt.Sscanf(line, "boots %d", &count)
	}
	return count
}

// uptime is what a machine says that it is up, in seconds, once that is more than before.
func uptime(t *testing.T, n *lab.Node, i api.Instance, before float64) (up float64) {
	t.Helper()
	for tick := time.Tick(200 * time.Millisecond); ; <-tick {
		_, said, err := n.Ask(t.Context(), http.MethodGet, "/api/instances/"+i.Name+"/logs?last=400", "")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(said), "\n")
		for k, line := range lines[:len(lines)-1] {
			if words := strings.Fields(line); k > 0 && len(words) == 2 && words[0] == "up" {
				if err := json.Unmarshal([]byte(words[1]), &up); err != nil {
					t.Fatal(err)
				}
			}
		}
		if up > before {
			return up
		}
	}
}
