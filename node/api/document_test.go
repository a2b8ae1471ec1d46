package api

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node"
)

// document returns what /openapi.json says.
func document(t *testing.T) []byte {
	t.Helper()
	s := New(Config{Node: &node.Node{}})
	w := request(s.guard(unrouted(s.mux), false), http.MethodGet, "/openapi.json")
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.Bytes()
}

// TestGeneratorsTakeTheDocument: those that people use, by version, without a complaint.
func TestGeneratorsTakeTheDocument(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "openapi.json")
	if err := os.WriteFile(file, document(t), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, dir, name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "REDOCLY_TELEMETRY=off", "REDOCLY_SUPPRESS_UPDATE_NOTICE=true", "NO_UPDATE_NOTIFIER=1")
		var says strings.Builder
		cmd.Stderr = &says
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s%s", strings.Join(args, " "), err, out, says.String())
		}
		return string(out)
	}
	npx := func(t *testing.T, args ...string) string {
		return run(t, dir, "npx", append([]string{"--yes", "--prefer-offline"}, args...)...)
	}
	t.Run("redocly", func(t *testing.T) {
		var found struct {
			Totals struct{ Errors, Warnings int }
		}
		out := npx(t, "@redocly/cli@1.34.5", "lint", "--format=json", file)
		if err := json.Unmarshal([]byte(out), &found); err != nil || found.Totals.Errors+found.Totals.Warnings > 0 {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("openapi-typescript", func(t *testing.T) {
		if out := npx(t, "openapi-typescript@7.13.0", file); !strings.Contains(out, `"/api/volumes/{name}"`) {
			t.Errorf("%.2000s", out)
		}
	})
}

// TestDocumentHasTheContract: all that the design says of volumes and snapshots.
func TestDocumentHasTheContract(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name string }
		}
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := json.Unmarshal(document(t), &doc); err != nil {
		t.Fatal(err)
	}
	const volume, snapshot = "/api/volumes/{name}", "/api/snapshots/{name}"
	for _, x := range []struct{ method, path, parameters string }{
		{"get", "/api/volumes", "all limit after"}, {"get", volume, "name"}, {"put", volume, "name"}, {"delete", volume, "name purge force"},
		{"post", volume + "/snapshots", "wait"}, {"post", volume + "/promote", "at"}, {"post", volume + "/export", "at"}, {"post", volume + "/resize", ""}, {"post", volume + "/detach", "force"},
		{"post", volume + "/move", ""}, {"post", volume + "/rollback", ""}, {"post", volume + "/limits", ""}, {"get", volume + "/changes", "from to limit after"},
		{"get", "/api/snapshots", "volume limit after"}, {"get", snapshot, "name"}, {"delete", snapshot, "name"}, {"post", snapshot + "/promote", ""}, {"post", snapshot + "/export", ""},
	} {
		op, there := doc.Paths[x.path][x.method]
		if !there {
			t.Errorf("%s %s is not there", x.method, x.path)
		}
		for _, want := range strings.Fields(x.parameters) {
			if !slices.ContainsFunc(op.Parameters, func(p struct{ Name string }) bool { return p.Name == want }) {
				t.Errorf("%s %s has no parameter %s", x.method, x.path, want)
			}
		}
	}
	for schema, members := range map[string]string{
		"VolumeSpec": "size from transport durability degrade readonly takeover generation limits",
		"Volume":     "name size from transport device durability degrade degraded_since readonly epoch state root dirty_bytes lag_bytes folded_at fs_used_bytes holders generation confirmed limits bytes through",
		"Snapshot":   "snapshot_id volume number label size created durable orphan parent root bytes",
		"Problem":    "code holder policy folded_at detail status",
	} {
		for _, want := range strings.Fields(members) {
			if doc.Components.Schemas[schema].Properties[want] == nil {
				t.Errorf("%s has no member %s", schema, want)
			}
		}
	}
}

// TestDocumentIsTrue: the statuses that are answered, who may ask, and text as text.
func TestDocumentIsTrue(t *testing.T) {
	b := document(t)
	var paths struct {
		Paths map[string]map[string]struct {
			Security  []map[string][]string
			Responses map[string]struct {
				Content map[string]any
				Headers map[string]any
			}
		}
	}
	if err := json.Unmarshal(b, &paths); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), `["array","null"]`) {
		t.Error("there are arrays that may be null")
	}
	for path, ops := range paths.Paths {
		for method, op := range ops {
			_, problems := op.Responses["4XX"].Content["application/problem+json"]
			if !problems || len(op.Security) == 0 {
				t.Errorf("%s %s: problems %t, security %v", method, path, problems, op.Security)
			}
			open := isOpen(strings.ToUpper(method), path)
			if got := reflect.DeepEqual(op.Security[0], map[string][]string{}); got != open {
				t.Errorf("%s %s: security %v", method, path, op.Security)
			}
		}
	}
	for _, x := range []struct{ path, method, status, content, header string }{
		{"/api/images/{name}", "put", "202", "application/json", "Location"},
		{"/api/volumes/{name}", "put", "201", "application/json", "Location"},
		{"/api/volumes/{name}", "put", "200", "application/json", ""},
		{"/api/volumes/{name}/snapshots", "post", "201", "application/json", "Location"},
		{"/api/volumes/{name}/snapshots", "post", "202", "application/json", "Location"},
		{"/api/volumes/{name}/changes", "get", "200", "application/json", "Link"},
		{"/api/volumes/{name}/move", "post", "202", "application/json", "Location"},
		{"/api/tokens", "post", "201", "application/json", ""},
		{"/api/images", "get", "200", "application/json", "Link"},
		{"/api/resolve/{name}", "get", "200", "application/json", "ETag"},
		{"/api/resolve/{name}", "get", "304", "", ""},
		{"/healthz", "get", "200", "text/plain", ""},
		{"/metrics", "get", "200", "text/plain", ""},
		{"/api/operations/{id}/events", "get", "200", "text/event-stream", ""},
		{"/ipfs/{cid}", "get", "200", blockType, ""},
	} {
		r, ok := paths.Paths[x.path][x.method].Responses[x.status]
		_, typed := r.Content[x.content]
		_, headed := r.Headers[x.header]
		if !ok || typed != (x.content != "") || headed != (x.header != "") {
			t.Errorf("%+v: %+v", x, r)
		}
	}
}
