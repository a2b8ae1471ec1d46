package oci

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// pusher serves a door that may publish, to who shows a token in the header Authorization.
func pusher(t *testing.T, quota int64) (*site, string) {
	f, _ := newFarm(t, newSource(t), 0)
	f.terms.Quota = quota
	s := f.open("pusher", t.TempDir())
	s.cfg.MayPublish = true
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer right" {
			r = r.WithContext(WithToken(r.Context()))
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(open.Close)
	return s, open.URL
}

// send sends a request with the token, and returns its status, where it leads to, and what it says.
func send(t *testing.T, method, url, body string, header ...string) (code int, to, said string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer right")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	b := make([]byte, 4096)
	n, _ := got.Body.Read(b)
	return got.StatusCode, got.Header.Get("Location"), string(b[:n])
}

// TestUploads: who shows no token sends nothing; a blob of another digest is not kept; one blob sent by many at once is one; a
// full quota is said; and what nobody goes on with is removed.
func TestUploads(t *testing.T) {
	t.Parallel()
	s, url := pusher(t, 1<<20)
	for _, wrong := range []string{"", "Bearer wrong"} {
		if code, _, said := send(t, http.MethodPost, url+"/v2/app/blobs/uploads/", "", "Authorization", wrong); code != http.StatusUnauthorized {
			t.Errorf("with %q: %d %s", wrong, code, said)
		}
	}
	one := string(random(100 << 10))
	id := digest.FromString(one)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if code, _, said := send(t, http.MethodPost, url+"/v2/app/blobs/uploads/?digest="+string(id), one); code != http.StatusCreated {
				t.Errorf("in one piece: %d %s", code, said)
			}
		})
	}
	all.Wait()
	if got := s.ask(t, http.MethodGet, "app/blobs/"+string(id)); digest.FromBytes(got.body) != id {
		t.Errorf("it is not there: %d", got.code)
	}
	if got := s.ask(t, http.MethodGet, "app/blobs/"+string(id), "Range", "bytes=-10"); got.code != http.StatusPartialContent || string(got.body) != one[len(one)-10:] {
		t.Errorf("from its end: %d, %d bytes", got.code, len(got.body))
	}
	if code, _, said := send(t, http.MethodPut, url+"/v2/app/manifests/sha256:bad", "{}"); code != http.StatusBadRequest {
		t.Errorf("no digest: %d %s", code, said)
	}
	if code, _, said := send(t, http.MethodPost, url+"/v2/app/blobs/uploads/?digest="+string(digest.FromString("x")), one); code != http.StatusBadRequest {
		t.Errorf("of another digest: %d %s", code, said)
	}
	big := string(random(2 << 20))
	if code, _, said := send(t, http.MethodPost, url+"/v2/app/blobs/uploads/?digest="+string(digest.FromString(big)), big); code != http.StatusInsufficientStorage || !strings.Contains(said, "--oci-quota") {
		t.Errorf("more than the quota: %d %s", code, said)
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":1}}`, digest.FromString("not here"))
	if code, _, said := send(t, http.MethodPut, url+"/v2/app/manifests/1", manifest, "Content-Type", "application/vnd.oci.image.manifest.v1+json"); code != http.StatusNotFound && code != http.StatusBadRequest || !strings.Contains(said, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("a manifest of what is not here: %d %s", code, said)
	}
	_, to, _ := send(t, http.MethodPost, url+"/v2/app/blobs/uploads/", "")
	if code, _, said := send(t, http.MethodPatch, url+to, "half"); code != http.StatusAccepted {
		t.Errorf("a part: %d %s", code, said)
	}
	s.blobs.mu.Lock()
	sum := s.blobs.sum
	s.blobs.mu.Unlock()
	if want := int64(len(one) + len("half")); sum != want {
		t.Errorf("blobs take %d bytes, want %d", sum, want)
	}
	s.pushes.mu.Lock()
	for _, u := range s.pushes.uploads {
		u.used = time.Now().Add(-2 * uploadIdle)
	}
	s.pushes.mu.Unlock()
	s.sweep()
	if code, _, said := send(t, http.MethodPatch, url+to, "more"); code != http.StatusNotFound {
		t.Errorf("swept: %d %s", code, said)
	}
	if files, err := os.ReadDir(filepath.Join(s.dir, "blobs", partDir)); err != nil || len(files) > 0 {
		t.Errorf("%d parts stay, %v", len(files), err)
	}
}
