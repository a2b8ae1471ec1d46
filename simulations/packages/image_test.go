package packages

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// blob is what an index or a manifest names.
type blob struct {
	MediaType, Digest string
	Size              int64
	Platform          struct{ Architecture, OS string }
}

// image: all that the layout names is there, by its digest, and what is in the image works
// with nothing else around it.
func image(t *testing.T, archive string) {
	dir := t.TempDir()
	sh(t, dir, "tar", "-xf", archive)
	var top, index struct{ Manifests []blob }
	read(t, filepath.Join(dir, "index.json"), &top)
	if len(top.Manifests) != 1 {
		t.Fatalf("index %+v", top)
	}
	read(t, check(t, dir, top.Manifests[0]), &index)
	for _, of := range index.Manifests {
		var manifest struct {
			Config blob
			Layers []blob
		}
		read(t, check(t, dir, of), &manifest)
		var config struct {
			Architecture string
			Config       struct{ Entrypoint []string }
			RootFS       struct {
				IDs []string `json:"diff_ids"`
			}
		}
		read(t, check(t, dir, manifest.Config), &config)
		layer := check(t, dir, manifest.Layers[0])
		if sum := strings.Fields(sh(t, dir, "bash", "-c", "zcat "+layer+" | sha256sum"))[0]; len(config.RootFS.IDs) != 1 || config.RootFS.IDs[0] != "sha256:"+sum || config.Architecture != of.Platform.Architecture {
			t.Errorf("config %+v of a layer with %s", config, sum)
		}
		if of.Platform.Architecture == "amd64" {
			runs(t, layer, config.Config.Entrypoint)
		}
	}
}

// runs is what FROM scratch makes of the layer.
func runs(t *testing.T, layer string, entry []string) {
	t.Helper()
	dir := t.TempDir()
	sh(t, dir, "tar", "-xzpf", layer)
	if sh(t, dir, "chroot", append([]string{"--userspec=65532:65532", dir}, append(entry, "--version")...)...) == "" {
		t.Error("no version")
	}
	text, err := os.ReadFile(filepath.Join(dir, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil {
		t.Fatal(err)
	}
	authorities := 0
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			t.Error(err)
		}
		authorities++
	}
	if authorities < 100 {
		t.Errorf("%d authorities", authorities)
	}
}

func check(t *testing.T, dir string, b blob) string {
	t.Helper()
	path := filepath.Join(dir, "blobs", strings.Replace(b.Digest, ":", "/", 1))
	data, err := os.ReadFile(path)
	if err != nil || fmt.Sprintf("sha256:%x", sha256.Sum256(data)) != b.Digest || int64(len(data)) != b.Size || b.MediaType == "" {
		t.Fatalf("%+v: %v", b, err)
	}
	return path
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
