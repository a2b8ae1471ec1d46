package instances

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// counted has a guest count its boots, and say how long it is up, again and again.
const counted = `root=/dev/vda rw console=ttyS0 net.ifnames=0 systemd.run_success_action=none systemd.run_failure_action=none systemd.run="/bin/sh -c 'echo x >> /boots; sync; exec > /dev/ttyS0; echo boots $(wc -l < /boots); while :; do read up rest < /proc/uptime; echo up $up; sleep 1; done'"`

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
	spec, err := json.Marshal(map[string]any{"from": "image:debian", "ready": "log:boots 1", "ready_seconds": 600, "memory": 512 << 20, "kernel": image.Kernel, "initrd": image.Initrd, "append": counted})
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
	t.Logf("it has booted after %v; read of its disk: %+v, of which the store sent %d bytes", time.Since(began), v.Bytes, front.Sent("packs/")-before)
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
	for range soak.Of(0, 1) {
		reach(t, b, http.MethodPost, "vm/deprovision", "", "unprovisioned")
		reach(t, b, http.MethodPut, "vm", strings.Replace(string(spec), "boots 1", "boots 2", 1), "provisioned")
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
