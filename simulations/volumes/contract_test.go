package volumes

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
)

// TestNonsenseLosesNothing asks every route of a node's own document for what can't be:
// names that are none, bodies that are none. Each says what is wrong, and the volume that
// is written to meanwhile keeps all of it.
func TestNonsenseLosesNothing(t *testing.T) {
	f := newFarm(t, 1)
	n := f.nodes[0]
	device := f.create(n, "web", "--size", "1MiB")
	w := newWriter(1<<20, 1)
	c := f.dial(device)
	f.steps(w, c, 20)
	var doc struct {
		Paths map[string]map[string]struct {
			RequestBody struct {
				Content map[string]any
			}
		}
	}
	if err := n.Get(t.Context(), "/openapi.json", &doc); err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, path := range slices.Sorted(maps.Keys(doc.Paths)) {
		for method, op := range doc.Paths[path] {
			method = strings.ToUpper(method)
			for _, x := range nonsense(method, path, len(op.RequestBody.Content) > 0) {
				asked++
				status, answer, err := n.Ask(t.Context(), method, x.path, x.body)
				var p api.Problem
				if err == nil {
					err = json.Unmarshal(answer, &p)
				}
				if err != nil || status < 400 || status >= 500 && status != http.StatusServiceUnavailable || p.Detail == "" || p.Code == "" || p.Status != status {
					t.Errorf("%s %s %.40s: %d %s, %v", method, x.path, x.body, status, answer, err)
				}
			}
			f.steps(w, c, 1)
		}
	}
	if asked < 50 {
		t.Errorf("%d requests: the document has not what it should", asked)
	}
	if got := f.contents(device); !bytes.Equal(got, w.disk()) {
		t.Error("the volume has other bytes")
	}
	if v := get[[]api.Volume](t, n, "/api/volumes"); len(v) != 1 || v[0].State != "attached" {
		t.Errorf("%+v", v)
	}
}

type asked struct{ path, body string }

// nonsense is what a route is asked.
func nonsense(method, path string, hasBody bool) (out []asked) {
	named := strings.Contains(path, "{")
	if !named && !hasBody {
		return nil
	}
	fill := func(with string) string {
		var b strings.Builder
		for part := range strings.SplitSeq(path, "/") {
			if strings.HasPrefix(part, "{") {
				part = with
			}
			if part != "" {
				b.WriteString("/" + part)
			}
		}
		return b.String()
	}
	if hasBody {
		for _, body := range []string{`{`, `[]`, `{"size": "much", "image": 1, "file": 2, "node": 3, "snapshot_id": 4, "label": 5, "iops": -1, "path": 6, "bytes": -1, "role": 7, "key": 8}`} {
			out = append(out, asked{fill("web"), body})
		}
	}
	// to delete what is not there is a success, and an image is looked for wherever it may be
	if named && method != http.MethodDelete {
		for _, name := range []string{"..%2f..%2fweb", "%00", "we%20b", strings.Repeat("x", 300)} {
			body := "{}"
			if strings.HasSuffix(path, "/export") {
				body = `{"file": "/nowhere/at/all"}`
			}
			out = append(out, asked{fill(name), body})
		}
	}
	return out
}

// TestRetriedPutMovesNothing: an orchestrator that repeats a PUT at another node does not
// move a volume that is held; the answer says who holds it, by which policy, and since
// when the bucket has all of it.
func TestRetriedPutMovesNothing(t *testing.T) {
	f := newFarm(t, 2)
	holder, other := f.nodes[0], f.nodes[1]
	device := f.create(holder, "web", "--size", "1MiB")
	w := newWriter(1<<20, 1)
	c := f.dial(device)
	id := get[api.Status](t, holder, "/api/status").Self.ID
	for _, body := range []string{`{"size": 1048576}`, `{}`, `{"size": 1048576, "transport": "nbd", "generation": 3}`} {
		f.steps(w, c, 5)
		p := f.problem(other, http.MethodPut, "/api/volumes/web", body)
		if p.Status != http.StatusConflict || p.Code != "held" || p.Policy != "local" || !strings.Contains(p.Holder, id) {
			t.Errorf("%s: %+v", body, p)
		}
		f.steps(w, c, 5)
	}
	if p := f.problem(other, http.MethodPut, "/api/volumes/web", `{"size": 2097152}`); p.Status != http.StatusConflict || p.Code != "held" {
		t.Errorf("of another size: %+v", p)
	}
	if got := f.contents(device); !bytes.Equal(got, w.disk()) {
		t.Error("the volume has other bytes")
	}
	if all := get[[]api.Volume](t, other, "/api/volumes"); len(all) != 0 {
		t.Errorf("the other node has %+v", all)
	}
}
