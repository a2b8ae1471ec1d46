package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/images"
)

// serveAt answers as a node on the socket of a new data folder.
func serveAt(t *testing.T, h http.Handler) (data string) {
	t.Helper()
	data, err := os.MkdirTemp("", "grange") // short enough for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(data) })
	l, err := net.Listen("unix", filepath.Join(data, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return data
}

// answer answers everything with a JSON document.
func answer(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
}

// command runs a command line.
func command(t *testing.T, args ...string) (code int, out, complaint string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), args, ask.Stdio{In: strings.NewReader(""), Out: &stdout, Err: &stderr}, nil)
	return code, stdout.String(), stderr.String()
}

// TestDataComesBeforeTheAddress: a folder on the command line is the node that is
// meant, whatever the environment says.
func TestDataComesBeforeTheAddress(t *testing.T) {
	here, there := serveAt(t, answer(`{"chunks": 1}`)), serveAt(t, answer(`{"chunks": 2}`))
	t.Setenv("GRANGE_API", filepath.Join(there, api.SocketName))
	if _, out, _ := command(t, "cache", "show", "--json"); !strings.Contains(out, "2") {
		t.Errorf("by the address: %s", out)
	}
	if _, out, _ := command(t, "cache", "show", "--json", "--data", here); !strings.Contains(out, "1") {
		t.Errorf("by the flag: %s", out)
	}
	t.Setenv("GRANGE_DATA", here)
	if _, out, _ := command(t, "cache", "show", "--json"); !strings.Contains(out, "2") {
		t.Errorf("by the address, with a folder in the environment: %s", out)
	}
}

// TestNoNodeAnswers says where it was looked for, once.
func TestNoNodeAnswers(t *testing.T) {
	data := t.TempDir()
	if code, _, complaint := command(t, "status", "--data", data); code != 1 || strings.Count(complaint, data) != 1 || !strings.Contains(complaint, "no such file") {
		t.Errorf("code %d, %s", code, complaint)
	}
}

// TestStandardInputIsWatched: it may be long until all of it is here.
func TestStandardInputIsWatched(t *testing.T) {
	data := serveAt(t, answer(`{}`))
	if err := os.Mkdir(filepath.Join(data, images.TempDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"image", "tree"} {
		if _, _, said := command(t, what, "import", "debian", "-", "--data", data); !strings.Contains(said, "import debian: 0 B; reading the standard input\n") {
			t.Errorf("%s: %s", what, said)
		}
	}
}

// TestStatusWaits for a node to be ready, no longer than it was told, and asks one that
// is ready once.
func TestStatusWaits(t *testing.T) {
	asked := 0
	data := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		fmt.Fprintf(w, `{"ready": %t, "waiting": ["its volumes"]}`, asked == 3)
	}))
	if code, out, complaint := command(t, "status", "--data", data); code != 1 || asked != 1 || !strings.Contains(out, "origin") || !strings.Contains(complaint, "waiting for its volumes") {
		t.Errorf("not ready: code %d, asked %d times, %s%s", code, asked, out, complaint)
	}
	if code, _, complaint := command(t, "status", "--data", data, "--wait", "1m"); code != 0 || asked != 3 {
		t.Errorf("ready at the third: code %d, asked %d times, %s", code, asked, complaint)
	}
}

// TestStatusSaysThatANodeWasRevoked, as the doctor does: it is ready, and of no use.
func TestStatusSaysThatANodeWasRevoked(t *testing.T) {
	data := serveAt(t, answer(`{"ready": true, "self": {"role": "admin", "revoked": "2026-11-28T17:55:08Z"}, "origin": {"state": "ok"}}`))
	for _, what := range []string{"status", "doctor"} {
		if _, out, _ := command(t, what, "--data", data); !strings.Contains(out, "revoked on ") {
			t.Errorf("%s: %s", what, out)
		}
	}
}

// TestStatusOfANodeThatHangs does not hang too.
func TestStatusOfANodeThatHangs(t *testing.T) {
	data := serveAt(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	code, _, complaint := command(t, "status", "--data", data, "--wait", "10ms")
	if code != 1 || !strings.Contains(complaint, "does not answer within 10ms") {
		t.Errorf("code %d, %s", code, complaint)
	}
}

// TestImagesAreListedAsTheyAreKnown: what the origin has not confirmed is marked.
func TestImagesAreListedAsTheyAreKnown(t *testing.T) {
	data := serveAt(t, answer(`[{"name": "debian", "confirmed": true}, {"name": "old", "age_seconds": 65.2, "confirmed": false}]`))
	_, out, _ := command(t, "image", "ls", "--data", data)
	for _, want := range []string{"SEEN", "now", "1m5s ago, unconfirmed"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

func TestRemovalIsTold(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                                    "no image, tree or tag is called debian\n",
		`{"kind": "image", "tags": ["stable"]}`: "removed image debian\ntag stable still stands for what it was\n",
	} {
		if code, out, _ := command(t, "image", "rm", "debian", "--data", serveAt(t, answer(text))); code != 0 || out != want {
			t.Errorf("%s: code %d, %q, want %q", text, code, out, want)
		}
	}
}

// TestExportToStandardOutput passes on what the node has written to a file of its own,
// which is gone then.
func TestExportToStandardOutput(t *testing.T) {
	var data string
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/images/debian/export", func(w http.ResponseWriter, r *http.Request) {
		var req api.ExportRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || !strings.HasPrefix(req.File, filepath.Join(data, images.TempDir)) {
			t.Errorf("asked for %+v, %v", req, err)
		}
		if err := os.WriteFile(req.File, []byte("disk"), 0o644); err != nil {
			t.Error(err)
		}
		io.WriteString(w, `{"id": "1", "kind": "export", "target": "debian", "state": "running"}`)
	})
	mux.HandleFunc("GET /api/operations/1/events", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "data: {\"id\": \"1\", \"kind\": \"export\", \"target\": \"debian\", \"state\": \"done\", "+
			"\"started\": \"2026-01-02T10:00:00Z\", \"ended\": \"2026-01-02T09:00:02Z\", \"took_seconds\": 2}\n\n") // the clock was set back
	})
	data = serveAt(t, mux)
	if err := os.Mkdir(filepath.Join(data, images.TempDir), 0o700); err != nil {
		t.Fatal(err)
	}
	code, out, said := command(t, "image", "export", "debian", "-", "--data", data)
	if code != 0 || out != "disk" || !strings.Contains(said, "done in 2.0 s") {
		t.Errorf("code %d, %q, said %s", code, out, said)
	}
	if left, err := os.ReadDir(filepath.Join(data, images.TempDir)); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	t.Setenv("GRANGE_API", "127.0.0.1:1")
	if code, _, said := command(t, "image", "export", "debian", "-"); code != 2 || !strings.Contains(said, "another host") {
		t.Errorf("at another host: code %d, %s", code, said)
	}
}
