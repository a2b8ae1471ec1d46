package oci

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/node/oci/registry"
)

// TestSizesAreNotBelieved: a manifest that says of a blob that is here, or comes, that it has more bytes or fewer
// leads to no answer that never ends.
func TestSizesAreNotBelieved(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	layer := random(300 << 10)
	whole := s.blob(t, "team/app", layer, ocispec.MediaTypeImageLayer)
	_, doors := newFarm(t, s, 1)
	d := doors[0]
	if got := d.ask(t, http.MethodGet, "team/app/blobs/"+string(whole.Digest)+ns); got.code != http.StatusOK || len(got.body) != len(layer) {
		t.Fatalf("the blob: %d, %d bytes", got.code, len(got.body))
	}
	for i, size := range []int64{whole.Size + 1, whole.Size - 1, whole.Size << 20, 1} {
		repo := fmt.Sprintf("evil/app%d", i)
		lie := whole
		lie.Size = size
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: s.blob(t, repo, fmt.Appendf(nil, `{"n":%d}`, i), ocispec.MediaTypeImageConfig), Layers: []ocispec.Descriptor{lie}}
		m.SchemaVersion = 2
		b, _ := json.Marshal(m)
		s.serve(repo, b)
		top := string(digest.FromBytes(b))
		if got := d.ask(t, http.MethodGet, repo+"/manifests/"+top+ns); got.code != http.StatusOK {
			t.Fatalf("the manifest: %d %s", got.code, got.body)
		}
		if got := d.ask(t, http.MethodGet, repo+"/blobs/"+string(whole.Digest)+ns); got.code != http.StatusNotFound || got.err != nil {
			t.Errorf("%d bytes said of %d: status %d, %v", size, whole.Size, got.code, got.err)
		}
	}
}

// serve has a registry send a manifest whose blobs it need not have.
func (s *source) serve(repo string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.hook
	s.hook = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/v2/"+repo+"/manifests/"+string(digest.FromBytes(b)) || r.URL.Path == "/v2/"+repo+"/manifests/1":
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(b)))
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b)
		case before != nil:
			before(w, r, next)
		default:
			next.ServeHTTP(w, r)
		}
	}
}

// TestALayerIsNoManifest: a blob that a manifest names is not read into memory by who asks for it as a manifest, and
// no manifest fills that with what it says of others.
func TestALayerIsNoManifest(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	s.image(t, "team/app", "1", registry.ManifestMax+1)
	_, doors := newFarm(t, s, 1)
	d := doors[0]
	head := d.ask(t, http.MethodGet, "team/app/manifests/1"+ns)
	var m ocispec.Manifest
	if err := json.Unmarshal(head.body, &m); err != nil {
		t.Fatal(err)
	}
	layer := string(m.Layers[0].Digest)
	if got := d.ask(t, http.MethodGet, "team/app/manifests/"+layer+ns); got.code != http.StatusNotFound || s.got(layer) != 0 {
		t.Errorf("a layer as a manifest: status %d, asked for %d times", got.code, s.got(layer))
	}
	m.Layers[0].MediaType = strings.Repeat("x", registry.MediaMax+1)
	b, _ := json.Marshal(m)
	s.serve("evil/app", b)
	if got := d.ask(t, http.MethodGet, "evil/app/manifests/1"+ns); got.code != http.StatusNotFound {
		t.Errorf("a media type of %d bytes: status %d", registry.MediaMax+1, got.code)
	}
}

// TestManyWrongNames: who asks for what is nowhere asks the registry a few times at once, and no member.
func TestManyWrongNames(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	var now, most atomic.Int64
	s.hooked(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		select { // so that all are there that come at once
		case <-r.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
		next.ServeHTTP(w, r)
	})
	f, doors := newFarm(t, s, 2)
	f.mu.Lock()
	delete(f.all, doors[1].id) // a call would take its time out
	f.mu.Unlock()
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			if got := doors[0].ask(t, http.MethodHead, fmt.Sprintf("team/no%d/manifests/1%s", i, ns)); got.code != http.StatusNotFound {
				t.Errorf("status %d", got.code)
			}
		})
	}
	all.Wait()
	if n := most.Load(); n > registry.RequestsEach {
		t.Errorf("%d questions at once to one registry, not %d", n, registry.RequestsEach)
	}
}

// TestAStartClearsUp: what a node left that died while it published takes no disk when it is back.
func TestAStartClearsUp(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	_, doors := newFarm(t, s, 1)
	dir, err := doors[0].blobs.stage()
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "blob"), random(100), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openBlobs(doors[0].blobs.dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is there after a start: %v", dir, err)
	}
}

// TestFilesAreLost: who removes a blob's file, or damages what is known, has it brought in anew, and a door all the same.
func TestFilesAreLost(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	s.image(t, "team/app", "1", 100<<10)
	f, doors := newFarm(t, s, 1)
	d := doors[0]
	if _, err := d.pull(t, "team/app", "1"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(d.dir, "blobs", wholeDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.dir, "blobs", wholeDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.pull(t, "team/app", "1"); err != nil {
		t.Errorf("files removed: %v", err)
	}
	d.end()
	for _, text := range []string{"", "{", `{"secret":"eA=="}`} {
		if err := os.WriteFile(filepath.Join(d.dir, "known.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		again := f.open(d.id, d.dir)
		if _, err := again.pull(t, "team/app", "1"); err != nil {
			t.Errorf("known is %q: %v", text, err)
		}
		again.end()
	}
}
