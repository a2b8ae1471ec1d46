package oci

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/origin/content"
)

// TestManifestOfNonsense: a registry that names parts by what is no digest is refused before anything is read.
func TestManifestOfNonsense(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	for _, bad := range []string{"", "x", "sha256:../../x", "sha256:" + strings.Repeat("g", 64)} {
		body := fmt.Sprintf(`{"schemaVersion": 2, "config": {"digest": %q, "size": 1}, "layers": []}`, bad)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", digest.FromString(body).String())
			fmt.Fprint(w, body)
		}))
		if _, err := Archive(t.Context(), s.Listener.Addr().String()+"/app:1", "", true); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
		s.Close()
	}
}
