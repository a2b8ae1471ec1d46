package oci

import (
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
	"github.com/grangemesh/grange/simulations/soak"
)

// size of the largest layer: in CI a small one.
func size() int { return soak.Of(12<<20, 256<<20) }

// published waits until the mesh has an image as a tree.
func published(t *testing.T, n *lab.Node, name string) {
	t.Helper()
	until(t, name+" is a tree", func() error {
		var r api.Resolved
		return n.Get(t.Context(), "/api/resolve/"+strings.NewReplacer("/", "%2F", ":", "%3A").Replace(name), &r)
	})
}

// TestFarmPullsOnce: containerd on eight hosts pulls one image through their nodes: its registry sends each blob once.
// Then, with the registry away, all of them pull it again, and a node of another farm does that never saw it.
func TestFarmPullsOnce(t *testing.T) {
	w := newWorld(t, 8, "")
	blobs, top := w.publish(t, "team/app", "1", size(), 3<<20, 100)
	var all sync.WaitGroup
	runtimes := make([]*runtime, len(w.nodes))
	for i, n := range w.nodes {
		runtimes[i] = w.containerd(t, n)
	}
	pull := func(when string) {
		t.Helper()
		for _, r := range runtimes {
			all.Go(func() {
				if err := r.pull(t, "team/app:1"); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			})
		}
		all.Wait()
	}
	pull("at once")
	for _, d := range blobs {
		if n := w.sent(t, d.Digest); n != 1 {
			t.Errorf("%s was sent %d times to %d nodes", d.Digest, n, len(w.nodes))
		}
	}
	if n := w.sent(t, top); n != 1 {
		t.Errorf("the manifest was sent %d times", n)
	}
	name := strings.Replace(w.name, ":", "_", 1) + "/team/app:1"
	published(t, w.nodes[0], name)
	w.stop()
	for _, r := range runtimes {
		r.forget(t, "team/app:1")
	}
	pull("with the registry away")
	runtimes[3].has(t, blobs)
	other, err := w.StartAs(t.Context(), "node", "other", "", "--oci", door, "--oci-upstream", w.name+"=http://"+w.name)
	if err != nil {
		t.Fatal(err)
	}
	far := w.containerd(t, other)
	if err := far.pull(t, "team/app:1"); err != nil {
		t.Errorf("in another farm: %v", err)
	}
	far.has(t, blobs)
	out, err := w.nodes[2].Run(t.Context(), "tree", "export", name, w.Dir+"/layout")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestPullerIsKilled: the node that gets a layer from the registry is killed in the middle; containerd on the others has
// the image all the same, and the registry has sent little more than once.
func TestPullerIsKilled(t *testing.T) {
	w := newWorld(t, 4, "")
	const rate = 4 << 20
	blobs, _ := w.publish(t, "team/app", "1", 4*rate)
	if err := lab.Narrow(t.Context(), w.host, rate); err != nil {
		t.Fatal(err)
	}
	runtimes := make([]*runtime, len(w.nodes))
	for i, n := range w.nodes {
		runtimes[i] = w.containerd(t, n)
	}
	errs := make([]error, len(w.nodes))
	var all sync.WaitGroup
	for i, r := range runtimes {
		all.Go(func() { errs[i] = r.pull(t, "team/app:1") })
	}
	puller := -1
	until(t, "one gets the layer", func() error {
		for i, n := range w.nodes {
			if got, err := n.Metric(t.Context(), `grange_oci_bytes_total{source="registry"}`); err == nil && got > rate/2 {
				puller = i
				return nil
			}
		}
		return fmt.Errorf("nobody does")
	})
	if err := w.nodes[puller].Kill(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	for i, err := range errs {
		if i != puller && err != nil {
			t.Errorf("node %d: %v", i, err)
		}
	}
	if n := w.sent(t, blobs[0].Digest); n > 2 {
		t.Errorf("the layer was asked for %d times", n)
	}
	runtimes[(puller+1)%4].has(t, blobs)
}

// bcrypt of "good", for the user ann.
const htpasswd = "ann:$2b$05$abcdefghijklmnopqrstuuNF5/gKGv1vSzRBclZtmf77tbZMWqiPK\n"

// TestPrivateImage: containerd with the right credential pulls through nodes what the registry guards; without one, and with a
// wrong one, it does not, though the nodes have it, and the registry is away.
func TestPrivateImage(t *testing.T) {
	w := newWorld(t, 2, htpasswd)
	w.token = "ann:good"
	blobs, _ := w.publish(t, "secret/app", "1", 1<<20)
	first, second := w.containerd(t, w.nodes[0]), w.containerd(t, w.nodes[1])
	if err := first.pull(t, "secret/app:1", "--user", w.token); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		for _, more := range [][]string{nil, {"--user", "ann:bad"}} {
			if err := second.pull(t, "secret/app:1", more...); err == nil {
				t.Errorf("%s, %q: it was pulled", when, more)
			}
		}
	}
	refused("registry there")
	if err := second.pull(t, "secret/app:1", "--user", w.token); err != nil {
		t.Error(err)
	}
	for _, d := range blobs {
		if n := w.sent(t, d.Digest); n != 1 {
			t.Errorf("%s was sent %d times", d.Digest, n)
		}
	}
	with := []string{fmt.Sprintf(`DOCKER_AUTH_CONFIG={"auths":{%q:{"auth":%q}}}`, w.name, base64.StdEncoding.EncodeToString([]byte(w.token)))}
	for name, env := range map[string][]string{"without": nil, "with": with} {
		said, code, err := w.Exec(t.Context(), w.nodes[0].Host, env, "image", "import", name, "oci:"+w.name+"/secret/app:1", "--plain-http", "--data", w.nodes[0].Data)
		if err != nil || (code == 0) != (name == "with") {
			t.Errorf("a disk of it, %s a credential: %d, %v, %s", name, code, err, said)
		}
	}
	w.stop()
	second.forget(t, "secret/app:1")
	refused("registry away")
	if err := second.pull(t, "secret/app:1", "--user", w.token); err != nil {
		t.Errorf("registry away: %v", err)
	}
}
