package volumes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"github.com/grangemesh/grange/node/api"
)

// document runs a command with --json and reads what it prints.
func document[T any](f *farm, n int, args ...string) (v T) {
	f.Helper()
	out := f.run(f.nodes[n], append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		f.Fatalf("%q: %v: %s", args, err, out)
	}
	return v
}

// TestCommandsOnDisks goes through the commands on one volume, and what each is for.
func TestCommandsOnDisks(t *testing.T) {
	f := newFarm(t, 1)
	n := f.nodes[0]
	w := newWriter(4<<20, 1)
	c := f.dial(f.create(n, "web", "--size", "4MiB"))
	f.steps(w, c, 10)
	first := document[api.Snapshot](f, 0, "volume", "snapshot", "web", "--label", "first")
	one := w.disk()
	f.steps(w, c, 10)
	second := document[api.Snapshot](f, 0, "volume", "snapshot", "web", "--wait", "durable")
	two := w.disk()
	if first.ID != "web@1" || first.Label != "first" || second.ID != "web@2" || !second.Durable {
		t.Errorf("%+v, %+v", first, second)
	}
	extents := document[[]api.Extent](f, 0, "volume", "changes", "web@1", "web@2")
	if err := sameChanges(extents, one, two); err != nil {
		t.Error(err)
	}
	f.steps(w, c, 1)
	if err := sameChanges(document[[]api.Extent](f, 0, "volume", "changes", "web@2"), two, w.disk()); err != nil {
		t.Errorf("up to now: %v", err)
	}
	for ref, want := range map[string][]byte{"snapshot:web@1": one, "snapshot:web@2": two, "web": w.disk()} {
		if !bytes.Equal(f.exported(n, ref), want) {
			t.Errorf("%s is written with other bytes", ref)
		}
	}
	op := document[api.Operation](f, 0, "image", "promote", "snapshot:web@1", "golden")
	f.run(n, "image", "tag", "golden", "stable")
	if got := f.contents(f.create(n, "of-image", "--from", "image:stable")); op.State != "done" || !bytes.Equal(got, one) {
		t.Errorf("%+v, and the image has other bytes", op)
	}
	if got := f.contents(f.create(n, "of-snapshot", "--from", "snapshot:web@2")); !bytes.Equal(got, two) {
		t.Error("a volume of a snapshot has other bytes")
	}
	if v := document[api.Volume](f, 0, "volume", "resize", "web", "6MiB"); v.Size != 6<<20 {
		t.Errorf("%+v", v)
	}
	if v := document[api.Volume](f, 0, "volume", "limit", "web", "--iops", "5000", "--rate", "100MiB/s"); v.Limits != (api.Limits{IOPS: 5000, BytesPerSecond: 100 << 20}) {
		t.Errorf("%+v", v)
	}
	if v := document[api.Volume](f, 0, "volume", "limit", "web"); v.Limits != (api.Limits{}) {
		t.Errorf("%+v", v)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	whole := append(slices.Clone(one), make([]byte, 2<<20)...) // it stays as large as it was made since
	if v := document[api.Volume](f, 0, "volume", "rollback", "web@1"); v.Size != 6<<20 || !bytes.Equal(f.contents(v.Device), whole) {
		t.Errorf("%+v, or other bytes", v)
	}
	if all := document[[]api.Volume](f, 0, "volume", "ls", "--all"); len(all) != 3 {
		t.Errorf("%+v", all)
	}
	f.run(n, "snapshot", "rm", "web@1")
	f.run(n, "volume", "rm", "web")
	if left := document[[]api.Snapshot](f, 0, "snapshot", "ls", "web"); len(left) != 1 || left[0].ID != "web@2" {
		t.Errorf("without the volume: %+v", left)
	}
	f.run(n, "volume", "rm", "web", "--purge")
	if left := document[[]api.Snapshot](f, 0, "snapshot", "ls"); len(left) != 0 {
		t.Errorf("purged: %+v", left)
	}
}

// sameChanges says where a list of changes differs from what differs in two disks, block
// by block.
func sameChanges(extents []api.Extent, a, b []byte) error {
	said := make([]bool, len(b)/block)
	for _, x := range extents {
		for at := x.Offset / block; at*block < x.Offset+x.Length; at++ {
			said[at] = true
		}
	}
	for at := range said {
		if differs := !bytes.Equal(a[at*block:][:block], b[at*block:][:block]); differs != said[at] {
			return fmt.Errorf("block %d differs: %t, and is said to: %t", at, differs, said[at])
		}
	}
	return nil
}

// TestWhatDisksRefuse: each has its reason, and the volume goes on as it was.
func TestWhatDisksRefuse(t *testing.T) {
	f := newFarm(t, 1)
	n := f.nodes[0]
	w := newWriter(1<<20, 1)
	device := f.create(n, "web", "--size", "1MiB")
	c := f.dial(device)
	f.steps(w, c, 5)
	f.run(n, "volume", "snapshot", "web")
	f.run(n, "volume", "attach", "web", "--generation", "7")
	file := filepath.Join(t.TempDir(), "no", "disk")
	for _, x := range []struct {
		method, path, body string
		status             int
	}{
		{http.MethodPut, "/api/volumes/web", `{"generation": 6}`, 409},
		{http.MethodPut, "/api/volumes/web", `{"size": 524288}`, 409},
		{http.MethodPut, "/api/volumes/web", `{"from": "image:other"}`, 409},
		{http.MethodPut, "/api/volumes/web", `{"durability": "farm:0"}`, 400},
		{http.MethodPut, "/api/volumes/web", `{"durability": "everywhere"}`, 400},
		{http.MethodPut, "/api/volumes/web2", `{"from": "snapshot:web@9"}`, 404},
		{http.MethodPut, "/api/volumes/web2", `{"from": "volume:none"}`, 404},
		{http.MethodPut, "/api/volumes/web2", `{"from": "volume:web", "size": 4096}`, 400},
		{http.MethodPost, "/api/volumes/web/resize", `{"size": 4096}`, 409},
		{http.MethodPost, "/api/volumes/web/resize", `{"size": 1048577}`, 400},
		{http.MethodPost, "/api/volumes/none/resize", `{"size": 2097152}`, 404},
		{http.MethodPost, "/api/volumes/web/rollback", `{"snapshot_id": "web@1"}`, 409}, // it is in use
		{http.MethodPost, "/api/volumes/web/rollback", `{"snapshot_id": "web@9"}`, 404},
		{http.MethodPost, "/api/volumes/web/rollback", `{"snapshot_id": "other@1"}`, 404},
		{http.MethodPost, "/api/volumes/none/snapshots", `{}`, 404},
		{http.MethodPost, "/api/volumes/none/limits", `{"iops": 1, "bytes_per_second": 0}`, 404},
		{http.MethodPost, "/api/volumes/web/export", fmt.Sprintf(`{"file": %q}`, file[1:]), 400},
		{http.MethodGet, "/api/volumes/web/changes?from=9", ``, 404},
		{http.MethodGet, "/api/volumes/none/changes?from=1", ``, 404},
		{http.MethodGet, "/api/volumes/web/changes?from=1&to=9", ``, 404},
		{http.MethodGet, "/api/snapshots/web@9", ``, 404},
	} {
		if p := f.problem(n, x.method, x.path, x.body); p.Status != x.status {
			t.Errorf("%s %s %s: %d %s, want %d", x.method, x.path, x.body, p.Status, p.Detail, x.status)
		}
		f.steps(w, c, 1)
	}
	for _, path := range []string{"/api/snapshots/web@9", "/api/volumes/none?purge=true"} {
		if status, answer, err := n.Ask(t.Context(), http.MethodDelete, path, ""); err != nil || status >= 300 {
			t.Errorf("DELETE %s: %d %s, %v", path, status, answer, err)
		}
	}
	if got := f.contents(device); !bytes.Equal(got, w.disk()) {
		t.Error("the volume has other bytes")
	}
}
