package api

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/node"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// TestResolveWithoutAToken: to whoever has none, what is private or deleted and what
// never was are one answer, byte by byte and in time, the first time and later.
func TestResolveWithoutAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names, commit := newNames(t)
		commit("open", content.Public(), false)
		commit("tied", content.Farm("lyon"), false)
		commit("mesh", content.Mesh(), false)
		commit("gone", content.Public(), true)
		h := newHandler(names)
		if w := ask(h, "open"); w.Code != http.StatusOK {
			t.Errorf("a public image: %d %s", w.Code, w.Body)
		}
		for range 2 {
			var first *httptest.ResponseRecorder
			var took time.Duration
			for i, name := range []string{"none", "tied", "mesh", "gone"} {
				began := time.Now()
				w := ask(h, name)
				same := time.Since(began)
				if i == 0 {
					first, took = w, same
				}
				body := bytes.ReplaceAll(w.Body.Bytes(), []byte(name), []byte("none"))
				if w.Code != http.StatusNotFound || !bytes.Equal(body, first.Body.Bytes()) || same != took {
					t.Errorf("%s: %d %s after %s, want as %s after %s", name, w.Code, w.Body, same, first.Body, took)
				}
				for key := range first.Header() {
					if key != "Date" && w.Header().Get(key) != first.Header().Get(key) {
						t.Errorf("%s: header %s is %q", name, key, w.Header().Get(key))
					}
				}
			}
			<-time.After(time.Minute)
		}
	})
}

// TestReferencesInPaths: an OCI reference is one segment of a path.
func TestReferencesInPaths(t *testing.T) {
	names, commit := newNames(t)
	commit("ghcr.io/org/debian:12", content.Public(), false)
	h := newHandler(names)
	if w := ask(h, content.Segment("ghcr.io/org/debian:12")); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"name":"ghcr.io/org/debian:12"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask(h, "ghcr.io/org/debian:12"); w.Code == http.StatusOK {
		t.Errorf("as several segments: %d", w.Code)
	}
}

func ask(h http.Handler, name string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/resolve/"+name, nil))
	return w
}

func newHandler(names *records.Names) http.Handler {
	s := New(Config{Node: &node.Node{Names: names}, Log: slog.New(slog.DiscardHandler)})
	return s.guard(s.mux, false)
}

// newNames are those of a node with an origin in memory; commit writes the record of an
// image, and its deletion.
func newNames(t *testing.T) (*records.Names, func(name string, scope content.Scope, deleted bool)) {
	t.Helper()
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "lyon"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	signer, verifier, codec := trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(mesh.Public()), content.NewCodec()
	c, err := catalog.New(catalog.Config{Bucket: mem.New(t, mem.Config{}), Verifier: verifier, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	origin := func() *catalog.Catalog { return c }
	names, err := records.New(records.Config{
		Dir: t.TempDir(), Reader: origin, Writer: origin, Verifier: verifier, Signer: signer, Codec: codec,
		Learn: func(records.Known) {}, Forget: func(content.CID, content.Scope) {}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pack.ParseID("public/2026112022-000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	at := func(n byte, offset uint32) pack.Extent {
		return pack.Extent{CID: content.Sum([]byte{n}), Location: pack.Location{Pack: id, Offset: offset, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}}
	}
	root := content.Root{Size: 1 << 30, ChunkSize: content.ChunkSizeDefault, Map: content.Sum([]byte{1})}
	return names, func(name string, scope content.Scope, deleted bool) {
		body, err := catalog.Image{Head: pack.Head{Root: root, Scope: scope, Node: at(1, 1<<24), Page: at(2, 1<<24+1<<12), Manifest: at(3, 1<<25)}}.Encode(codec)
		if err != nil {
			t.Fatal(err)
		}
		ch := catalog.Change{Kind: content.KindImage, Name: name, Farm: scope.Farm(), Body: body}
		r, err := c.Commit(t.Context(), ch)
		if err == nil && deleted {
			_, err = c.Commit(t.Context(), catalog.Change{Kind: ch.Kind, Name: name, Base: &r, Delete: true})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
