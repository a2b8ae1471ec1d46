package oci

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// conformance is the suite of the OCI distribution specification.
const conformance = "github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111"

// tokenOf is what a node's API asks for.
func tokenOf(t *testing.T, n *lab.Node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Data, api.TokenName))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestConformance: the distribution specification's own suite passes at a node's door. Off is what the door does not
// do: to delete a blob, which goes with its image, and digests of SHA-512.
func TestConformance(t *testing.T) {
	w := newWorld(t, 1, "")
	n := w.nodes[0]
	build := installed(t, conformance)
	cmd := n.Host.Command(t.Context(), filepath.Join(build, "conformance"))
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+door, "OCI_TLS=disabled", "OCI_USERNAME=any", "OCI_PASSWORD="+tokenOf(t, n),
		"OCI_API_BLOBS_UPLOAD_CANCEL=true", "OCI_API_BLOBS_DELETE=false", "OCI_DATA_SHA512=false")
	out, err := cmd.CombinedOutput()
	for _, want := range []string{"Blob push", "Blob chunked", "Blob mount", "Manifest put by tag", "Referrers", "Tag listing"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the suite says nothing of %q", want)
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestPushedIsServedElsewhere: what buildah pushes into one node containerd pulls on the host of another, with the first one
// gone; ctr pushes too; who shows no token, or another, pushes nothing.
func TestPushedIsServedElsewhere(t *testing.T) {
	w := newWorld(t, 2, "")
	pusher, err := w.StartAs(t.Context(), "publisher", "main", "file://"+filepath.Join(filepath.Dir(w.dir), "origin"), "--oci", door, "--oci-upstream", w.name+"=http://"+w.name)
	if err != nil {
		t.Fatal(err)
	}
	other := w.nodes[1]
	blobs, _ := w.publish(t, "team/app", "1", 1<<20, 3000)
	first := w.containerd(t, pusher)
	if err := first.pull(t, "team/app:1"); err != nil {
		t.Fatal(err)
	}
	target := door + "/pushed/app:1"
	if _, err := first.ctr(t, "images", "tag", w.name+"/team/app:1", target); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"", "any:wrong"} {
		if out, err := first.ctr(t, "images", "push", "--plain-http", "--user", user, target); err == nil {
			t.Errorf("with %q it was pushed: %s", user, out)
		}
	}
	token := tokenOf(t, pusher)
	if _, err := first.ctr(t, "images", "push", "--plain-http", "--user", "any:"+token, target); err != nil {
		t.Fatal(err)
	}
	layout, err := os.MkdirTemp("", "layout") // buildah wants small letters
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(layout)
	if _, err := pusher.Run(t.Context(), "tree", "export", "pushed/app:1", layout); err != nil {
		t.Fatal(err)
	}
	auth := filepath.Join(w.Dir, "auth.json")
	text := `{"auths":{"` + door + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("any:"+token)) + `"}}}`
	if err := os.WriteFile(auth, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	shop := filepath.Join(w.Dir, "shop")
	args := []string{"--root", filepath.Join(shop, "root"), "--runroot", filepath.Join(shop, "run"), "--storage-driver", "vfs"}
	buildah := func(more ...string) string {
		t.Helper()
		out, err := pusher.Host.Command(t.Context(), "buildah", append(args[:len(args):len(args)], more...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("buildah %s: %v: %s", more, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	buildah("pull", "--quiet", "oci:"+layout)
	buildah("push", "--quiet", "--tls-verify=false", "--authfile", auth, buildah("images", "--quiet"), "docker://"+door+"/pushed/built:1")
	if err := pusher.Kill(); err != nil {
		t.Fatal(err)
	}
	w.stop()
	far := w.containerd(t, other)
	for _, image := range []string{"pushed/app:1", "pushed/built:1"} {
		if _, err := far.ctr(t, "images", "pull", "--snapshotter", "native", "--plain-http", door+"/"+image); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
	far.has(t, blobs)
}

// installed builds a program by its version, outside of this module, and returns the folder that has it.
func installed(t *testing.T, program string) string {
	t.Helper()
	to := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "install", program)
	cmd.Dir, cmd.Env = to, append(os.Environ(), "GOBIN="+to, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v: %s", program, err, out)
	}
	return to
}
