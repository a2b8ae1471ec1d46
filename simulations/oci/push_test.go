package oci

import (
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
