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
}
