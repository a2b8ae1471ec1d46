package attack

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
)

// open are the routes that ask for no token; what they answer is for everybody.
var open = map[string]bool{"/api/resolve/{name}": true, "/ipfs/{cid}": true, "/healthz": true, "/readyz": true}

// TestOnlyItsUserCommandsANode: over HTTP whoever has no token, or another, is refused on
// every route that is not open to all; and on the host no other user may open anything
// in the data folder, the sockets and the token least.
func TestOnlyItsUserCommandsANode(t *testing.T) {
	l := newLab(t)
	n, err := l.Start(t.Context(), "alpha", "", "--api", apiAddress)
	if err != nil {
		t.Fatal(err)
	}
	client := tokenless(outside(t, l))
	var described struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	if status, b, err := fetch(t.Context(), client, "https://"+apiAddress+"/openapi.json"); status != http.StatusOK || json.Unmarshal(b, &described) != nil {
		t.Fatalf("the API describes itself: %d %s, %v", status, b, err)
	}
	tried := 0
	for path, methods := range described.Paths {
		for method := range methods {
			if open[path] {
				continue
			}
			tried++
			for _, token := range []string{"", "Bearer " + strings.Repeat("x", 43), "Bearer "} {
				req, err := http.NewRequestWithContext(t.Context(), strings.ToUpper(method), "https://"+apiAddress+strings.NewReplacer("{", "", "}", "").Replace(path), nil)
				if err != nil {
					t.Fatal(err)
				}
				if token != "" {
					req.Header.Set("Authorization", token)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusUnauthorized {
					t.Errorf("%s %s with %q: %s", method, path, token, resp.Status)
				}
			}
		}
	}
	if tried < 20 {
		t.Errorf("only %d routes were tried", tried)
	}
	err = filepath.WalkDir(n.Data, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if path == n.Data || filepath.Base(path) == api.CertificateName { // the folder was there before, and the certificate is for all
			return err
		}
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
