//go:build linux

package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/cmd/grange/client"
	"github.com/grangemesh/grange/cmd/grange/support"
	"github.com/grangemesh/grange/node/api"
)

// unpacked are the files of an archive by name.
func unpacked(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for in := tar.NewReader(packed); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		b, rerr := io.ReadAll(in)
		if err := errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		out[strings.TrimPrefix(h.Name, "grange-support/")] = string(b)
	}
}

// planted are secrets where a node and its host have them, and a config file with one.
func planted(t *testing.T) (secret []string, config string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secret = []string{"PLANTEDKEYID12345678", "planted/secret+key", "planted-session-token", "planted-of-the-file", "planted-proxy-password", "grange1" + strings.Repeat("planted", 8), "planted-header", "planted-grange-token"}
	t.Setenv("AWS_ACCESS_KEY_ID", secret[0])
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret[1])
	t.Setenv("AWS_SESSION_TOKEN", secret[2])
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", write("credentials", "[default]\naws_access_key_id = x\naws_secret_access_key = "+secret[3]+"\n"))
	t.Setenv("HTTPS_PROXY", "http://user:"+secret[4]+"@127.0.0.1:1")
	t.Setenv("NO_PROXY", "*")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization="+secret[6])
	t.Setenv("GRANGE_TOKEN", secret[7])
	return secret, write("node.yaml", "join: "+secret[5]+"\nfarm: lyon\n")
}

// TestSupportHasWhatIsNeeded of a node that has been through something, and nothing that is secret; and what there is of its host once it is gone.
func TestSupportHasWhatIsNeeded(t *testing.T) {
	secret, config := planted(t)
	s := serveNode(t, "--api", "127.0.0.1:0", "--log-level", "debug", "--origin", "s3://mirror?region=x&endpoint=https://user:planted-mirror-password@127.0.0.1:1")
	data := filepath.Join(s.dir, "data")
	s.well(t, "image import debian "+noise(t, 1))
	s.well(t, "volume create web1 --from image:debian")
	token := strings.TrimSpace(s.well(t, "token create --role node"))
	if code, _, _ := command(t, "image", "import", "broken", "/nowhere/"+token, "--data", data); code == 0 {
		t.Error("an image of nothing")
	}
	if code, _, complaint := command(t, "instance", "provision", "web2", "--data", data, "--no-port", "--ready", "none", "--env", "DATABASE=planted-of-env", "--", "sh", "-c", "exec sleep 1000 # planted-of-the-command"); code != 0 {
		t.Error(complaint)
	}
	secret = append(secret, "planted-mirror-password", "planted-of-env", "planted-of-the-command", token, token[:40])
	for _, name := range []string{api.TokenName, "mesh.key", "node.key", "api.key"} {
		if b, err := os.ReadFile(filepath.Join(data, name)); err == nil {
			secret = append(secret, strings.TrimSpace(string(b)))
		}
	}
	clean := func(files map[string]string) {
		t.Helper()
		for name, text := range files {
			for _, x := range secret {
				if strings.Contains(text, x) {
					t.Errorf("%s has %q", name, x)
				}
			}
			if strings.Contains(text, "planted") {
				t.Errorf("%s has something planted: %.200q", name, text[max(0, strings.Index(text, "planted")-60):])
			}
		}
	}
	archive := filepath.Join(t.TempDir(), "support.tar.gz")
	out := s.well(t, "support "+archive+" --json --config "+config)
	var said struct {
		File    string
		Bytes   int64
		Missing map[string]string
	}
	if info, err := os.Stat(archive); json.Unmarshal([]byte(out), &said) != nil || err != nil || info.Mode().Perm() != 0o600 || info.Size() != said.Bytes || said.Bytes > 4<<20 {
		t.Errorf("%s, %v, %v", out, info, err)
	}
	files := unpacked(t, archive)
	clean(files)
	for name, want := range map[string]string{
		"version.txt": "grange ", "doctor.json": "data folder", "node/status.json": `"ready": true`, "node/volumes.json": `"web1"`, "node/operations.json": `"import"`, "node/instances.json": `"web2"`, "node/images.json": `"debian"`,
		"node/metrics.txt": "grange_cache_hits_total", "node/log.txt": "an image of nothing can't be", "node/goroutines.txt": "goroutine ", "node/members.json": "[", "host/config.yaml": "farm: lyon", "host/environment.txt": "AWS_SECRET_ACCESS_KEY is set",
		"host/data.txt": "volumes", "host/proc/version": "Linux", "missing.txt": "",
	} {
		if want == "an image of nothing can't be" {
			want = "operation ended"
		}
		if text, ok := files[name]; !ok || !strings.Contains(text, want) {
			t.Errorf("%s has no %q: %.300s", name, want, text)
		}
	}
	s.signal(t, syscall.SIGTERM)
	s.ends(t)
	gone := filepath.Join(t.TempDir(), "gone.tar.gz")
	s.well(t, "support "+gone+" --config "+config)
	files = unpacked(t, gone)
	clean(files)
	if lacks := files["missing.txt"]; !strings.Contains(lacks, "node/status.json: no node answers") || files["host/data.txt"] == "" || files["doctor.json"] == "" {
		t.Errorf("without a node: %s", lacks)
	}
	if code, _, _ := command(t, "support", gone, "--data", data); code != 1 {
		t.Error("a file that was there is written over")
	}
}

// TestSupportOfANodeThatHangs has all else, in time.
func TestSupportOfANodeThatHangs(t *testing.T) {
	data := serveAt(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	asked, err := client.New(client.Config{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	missing, err := support.Config{Client: asked, Here: true, Data: data, Timeout: time.Second, Doctor: func(_ context.Context) ([]byte, error) { return []byte("[]"), nil }}.Write(t.Context(), io.Discard)
	if took := time.Since(begun); err != nil || took > 20*time.Second || !strings.Contains(missing["node/status.json"], "within 1s") || missing["host/data.txt"] != "" {
		t.Errorf("after %s: %v, %v", took, missing, err)
	}
}

// TestSupportOfADocumentThatIsTooLong has none of it: where it is cut nobody knows any more what its users chose. However
// much comes, little is kept.
func TestSupportOfADocumentThatIsTooLong(t *testing.T) {
	const sent = 24 << 20
	data := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/instances" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `[{"spec": {"env": ["DATABASE=planted"]}}`+strings.Repeat(" ", sent)+"]")
	}))
	asked, err := client.New(client.Config{Data: data})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "support.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := (support.Config{Client: asked, Doctor: func(context.Context) ([]byte, error) { return []byte("[]"), nil }}).Write(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if text := unpacked(t, f.Name())["node/instances.json"]; text != fmt.Sprintf("… %d bytes are left out\n", 16<<20) {
		t.Errorf("%.200s", text)
	}
}
