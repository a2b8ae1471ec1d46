package mesh

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/lab"
)

// TestWhyNamesWhoWasSlow: a guest's reads come late as a member says nothing, and then as the
// store is slow. `grange why` names the one and the other, with block, chunk, source, time and
// what was tried.
func TestWhyNamesWhoWasSlow(t *testing.T) {
	const region = 8 << 20
	l := newLab(t)
	_, store := front(t, l)
	holder, err := l.Start(t.Context(), "a", store.URL, "--name", "hv7")
	if err != nil {
		t.Fatal(err)
	}
	cold, err := l.Start(t.Context(), "a", store.URL, "--name", "hv8")
	if err != nil {
		t.Fatal(err)
	}
	path, _ := disk(t, l.Dir, 4*region)
	run(t, holder, "image", "import", "disk", path)
	device := run(t, cold, "volume", "create", "v", "--from", "image:disk")
	guest := func(off int64) {
		t.Helper()
		if err := readRange(t.Context(), device, off, 4096); err != nil {
			t.Fatal(err)
		}
	}
	guest(1 << 20) // the map is here, and the members have met
	store.Meddle(func(key string, w http.ResponseWriter, r *http.Request, to http.Handler) {
		if strings.HasPrefix(key, "packs/") {
			select {
			case <-time.After(300 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		to.ServeHTTP(w, r)
	})
	if err := holder.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	mute := int64(region + 1<<20)
	guest(mute)
	y := get[api.Why](t, cold, "/api/volumes/v/why")
	if len(y.Reads) == 0 || len(y.Words) == 0 || !strings.Contains(strings.Join(y.Words, "\n"), "for hv7, which brought nothing; then the bytes came from the origin") {
		t.Fatalf("a mute member: %+v", y)
	}
	if r := y.Reads[0]; r.Offset > mute || r.Offset+128<<10 < mute || r.Source != "origin" || r.Took < 1 || r.Chunk == "" || len(r.Steps) < 2 {
		t.Errorf("the slowest is %+v", r)
	}
	if err := holder.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the member is gone", func(ctx context.Context) bool { return len(get[api.Status](t, cold, "/api/status").Farm) == 0 })
	for i := range 3 {
		guest(int64((2*region + 1<<20) + i<<21))
	}
	said := run(t, cold, "why", "v")
	for _, want := range []string{"slow reads waited up to", " for the origin", "hv7", fmt.Sprint("offset ", 2*region+1<<20), "from origin", "read the origin", "stalled"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in:\n%s", want, said)
		}
	}
	t.Log("\n" + said)
	if i := get[api.Image](t, cold, "/api/images/disk"); i.Bytes.Origin < 128<<10 || i.Copies <= 0 || i.Copies >= 1 || i.Bytes.Farm == 0 {
		t.Errorf("the image is %+v", i)
	}
	for _, name := range []string{`grange_image_bytes_total{image="disk",source="origin"}`, `grange_volume_bytes_total{source="origin",volume="v"}`} {
		if metric(t, cold, name) == 0 {
			t.Errorf("no %s", name)
		}
	}
	aloneIsSaid(t, cold, holder)
}

// aloneIsSaid looks for what a node says whose only neighbour is gone: it is ready, and warns;
// nothing is left of the neighbour, and once that is back nothing of the warning.
func aloneIsSaid(t *testing.T, n, gone *lab.Node) {
	t.Helper()
	warned := func() bool {
		s := get[api.Status](t, n, "/api/status")
		about := ""
		for _, w := range s.Warnings {
			about += w.About + " "
		}
		return s.Ready && strings.Contains(about, "farm") && strings.Contains(about, "mesh")
	}
	until(t, "it warns", func(context.Context) bool { return warned() })
	if left := get[api.Peers](t, n, "/api/peers").Peers; len(left) > 0 {
		t.Errorf("%+v is shown still", left)
	}
	_, ready, err := n.Ask(t.Context(), http.MethodGet, "/readyz", "")
	if err != nil || !strings.HasPrefix(string(ready), "ok\n") || !strings.Contains(string(ready), "warning: farm: no neighbour is in reach") || !strings.Contains(string(ready), "hv7") {
		t.Errorf("ready: %s, %v", ready, err)
	}
	if out := run(t, n, "status"); !strings.Contains(out, "mesh: no member of the mesh is in reach, so nothing is had from any") {
		t.Errorf("status: %s", out)
	}
	if out, err := n.Run(t.Context(), "doctor"); err == nil || !strings.Contains(out, "BAD  mesh") {
		t.Errorf("doctor: %v: %s", err, out)
	}
	until(t, "it is in the log", func(context.Context) bool { return strings.Count(n.Tail(40), "about=mesh") == 1 })
	if err := gone.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the warnings are over", func(context.Context) bool {
		return len(get[api.Status](t, n, "/api/status").Warnings) == 0 && len(get[api.Peers](t, n, "/api/peers").Peers) == 1
	})
}
