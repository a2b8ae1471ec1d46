package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/lab"
)

// gateway asks a node for public content, as one that knows nothing but its address.
type gateway struct {
	client *http.Client
	codec  *content.Codec
}

// do sends a request with headers in pairs.
func (g gateway) do(t *testing.T, method, path string, header ...string) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+apiAddress+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := g.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

// block gets a block by its CID alone, and checks it.
func (g gateway) block(t *testing.T, id content.CID) []byte {
	t.Helper()
	resp, b := g.do(t, http.MethodGet, "/ipfs/"+id.String(), "Accept", "application/vnd.ipld.raw")
	if _, err := content.Verify(id, b); resp.StatusCode != http.StatusOK || err != nil {
		t.Fatalf("%s: %d %.200q, %v", id, resp.StatusCode, b, err)
	}
	return b
}

// walk goes from a root to all bytes that are no holes, and returns them by chunk, with
// the names of all blocks on the way.
func (g gateway) walk(t *testing.T, root content.CID) (chunks map[uint64][]byte, names []content.CID) {
	t.Helper()
	r, err := content.DecodeRoot(g.codec, g.block(t, root))
	if err != nil {
		t.Fatal(err)
	}
	chunks, names = map[uint64][]byte{}, []content.CID{root}
	var down func(id content.CID, level int, index uint64)
	down = func(id content.CID, level int, index uint64) {
		names = append(names, id)
		b := g.block(t, id)
		if level == 0 {
			chunks[index] = b
			return
		}
		n, err := content.DecodeNode(g.codec, level, b)
		if err != nil {
			t.Fatal(err)
		}
		for i, below := range n.Entries {
			if !below.IsHole() {
				down(below, level-1, index*content.MapFanout+uint64(i))
			}
		}
	}
	down(r.Map, r.Shape().Depth(), 0)
	return chunks, names
}

// publicNode is a node with an API that is open to all, and a gateway to it.
func publicNode(t *testing.T) (*lab.Lab, *lab.Node, gateway) {
	t.Helper()
	l := newLab(t)
	n, err := l.Start(t.Context(), "alpha", "", "--api", apiAddress)
	if err != nil {
		t.Fatal(err)
	}
	return l, n, gateway{tokenless(outside(t, l)), content.NewCodec()}
}

// resolve returns the root that a public name stands for.
func (g gateway) resolve(t *testing.T, name string) content.CID {
	t.Helper()
	resp, b := g.do(t, http.MethodGet, "/api/resolve/"+name)
	var r api.Resolved
	if err := json.Unmarshal(b, &r); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s, %v", name, resp.StatusCode, b, err)
	}
	return r.CID
}

// TestWalkFromANameToBytes: with CIDs alone and no token, after a restart too; what is
// not public is met nowhere.
func TestWalkFromANameToBytes(t *testing.T) {
	l, n, g := publicNode(t)
	d := newDisk(t, l.Dir, imageSize, 120)
	if err := os.Truncate(d.path, 300<<20); err != nil { // so that there are two levels of map
		t.Fatal(err)
	}
	run(t, n, "image", "import", "open", d.path, "--scope", "public")
	secret := newDisk(t, l.Dir, imageSize, 121)
	run(t, n, "image", "import", "tied", secret.path)
	root := g.resolve(t, "open")
	for _, restarted := range []bool{false, true} {
		if restarted {
			if err := n.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			g.client.CloseIdleConnections()
		}
		chunks, _ := g.walk(t, root)
		if len(chunks)*content.ChunkSizeDefault != len(d.bytes) {
			t.Errorf("%d chunks", len(chunks))
		}
		for i, b := range chunks {
			if at := int(i) * content.ChunkSizeDefault; !bytes.Equal(b, d.bytes[at:at+len(b)]) {
				t.Errorf("chunk %d differs", i)
			}
		}
		private := get[api.Image](t, n, "/api/images/tied").CID
		for _, id := range []content.CID{private, content.Sum(secret.bytes[:content.ChunkSizeDefault])} {
			if resp, b := g.do(t, http.MethodGet, "/ipfs/"+id.String(), "Accept", "application/vnd.ipld.raw"); resp.StatusCode != http.StatusNotFound {
				t.Errorf("private %s: %d, %d bytes", id, resp.StatusCode, len(b))
			}
		}
	}
}

// TestRemovedImageIsPublicNoMore: although an image of scope mesh shares its chunks,
// which stays readable.
func TestRemovedImageIsPublicNoMore(t *testing.T) {
	l, n, g := publicNode(t)
	d := newDisk(t, l.Dir, imageSize, 122)
	run(t, n, "image", "import", "open", d.path, "--scope", "public")
	d.bytes[0] ^= 1
	shared := disk{filepath.Join(l.Dir, "shared"), d.bytes}
	if err := os.WriteFile(shared.path, shared.bytes, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, n, "image", "import", "tied", shared.path)
	run(t, n, "image", "warm", "tied")
	shared.read(t, n, "before", "tied")
	_, names := g.walk(t, g.resolve(t, "open"))
	run(t, n, "image", "rm", "open")
	absent := content.Sum([]byte("never was"))
	_, want := g.do(t, http.MethodGet, "/ipfs/"+absent.String(), "Accept", "application/vnd.ipld.raw")
	gone := func(id content.CID) bool {
		resp, b := g.do(t, http.MethodGet, "/ipfs/"+id.String(), "Accept", "application/vnd.ipld.raw")
		return resp.StatusCode == http.StatusNotFound && string(b) == strings.ReplaceAll(string(want), absent.String(), id.String())
	}
	for i, id := range names {
		until(t, fmt.Sprintf("block %d of the removed image is absent", i), func(context.Context) bool { return gone(id) })
	}
	run(t, n, "image", "warm", "tied")
	shared.read(t, n, "after", "tied")
	for i, id := range names {
		if !gone(id) {
			t.Errorf("block %d of the removed image is back", i)
		}
	}
}

// TestGatewayConformance has what the gateway-conformance suite asks of raw blocks, and
// its ranges, of blocks that the node has: the suite's own are of other kinds.
func TestGatewayConformance(t *testing.T) {
	l, n, g := publicNode(t)
	d := newDisk(t, l.Dir, imageSize, 123)
	run(t, n, "image", "import", "open", d.path, "--scope", "public")
	_, names := g.walk(t, g.resolve(t, "open"))
	blocks := map[string][]byte{"bafkqabtimvwgy3yk": []byte("hello\n"), "bafkqaaa": {}}
	for _, id := range names[:3] { // the root, its map, a chunk
		blocks[id.String()] = g.block(t, id)
	}
	const raw = "application/vnd.ipld.raw"
	for name, block := range blocks {
		t.Run(name, func(t *testing.T) {
			path := "/ipfs/" + name
			var etag string
			for _, x := range []struct{ query, accept string }{{"?format=raw", ""}, {"", raw}, {"", "text/html, " + raw + ";q=0.5"}, {"?format=raw", "text/html"}} {
				resp, b := g.do(t, http.MethodGet, path+x.query, "Accept", x.accept)
				h := resp.Header
				if resp.StatusCode != http.StatusOK || !bytes.Equal(b, block) || resp.ContentLength != int64(len(block)) {
					t.Fatalf("%+v: %d, %d bytes, length %d", x, resp.StatusCode, len(b), resp.ContentLength)
				}
				for key, want := range map[string]string{
					"Content-Type": raw, "X-Content-Type-Options": "nosniff", "X-Ipfs-Path": path, "X-Ipfs-Roots": name,
					"Cache-Control": "public, max-age=29030400, immutable", "Access-Control-Allow-Origin": "*",
				} {
					if h.Get(key) != want {
						t.Errorf("%s: %q, want %q", key, h.Get(key), want)
					}
				}
				if etag = h.Get("Etag"); etag == "" || !strings.HasPrefix(h.Get("Content-Disposition"), `attachment; filename="`+name+".bin") {
					t.Errorf("headers %v", h)
				}
			}
			resp, _ := g.do(t, http.MethodGet, path+"?filename=foobar.bin", "Accept", raw)
			if d := resp.Header.Get("Content-Disposition"); !strings.HasPrefix(d, "attachment;") || !strings.Contains(d, `filename="foobar.bin"`) {
				t.Errorf("with a name: %s", d)
			}
			if resp, b := g.do(t, http.MethodHead, path, "Accept", raw); resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(block)) || len(b) > 0 {
				t.Errorf("HEAD: %d, length %d", resp.StatusCode, resp.ContentLength)
			}
			for _, have := range []string{etag, "W/" + etag, `"other", ` + etag, "*"} {
				if resp, b := g.do(t, http.MethodGet, path, "Accept", raw, "If-None-Match", have); resp.StatusCode != http.StatusNotModified || len(b) > 0 || resp.Header.Get("Etag") != etag {
					t.Errorf("If-None-Match %s: %d", have, resp.StatusCode)
				}
			}
			if len(block) < 6 {
				return
			}
			resp, b := g.do(t, http.MethodGet, path, "Accept", raw, "Range", "bytes=1-4")
			if resp.StatusCode != http.StatusPartialContent || !bytes.Equal(b, block[1:5]) || resp.Header.Get("Content-Range") != fmt.Sprintf("bytes 1-4/%d", len(block)) || resp.Header.Get("Content-Type") != raw {
				t.Errorf("one range: %d %v %q", resp.StatusCode, resp.Header, b)
			}
			resp, b = g.do(t, http.MethodGet, path, "Accept", raw, "Range", "bytes=0-1,3-4")
			if resp.StatusCode != http.StatusPartialContent || !bytes.Contains(b, block[3:5]) || !bytes.Contains(b, fmt.Appendf(nil, "Content-Range: bytes 3-4/%d", len(block))) {
				t.Errorf("two ranges: %d %q", resp.StatusCode, b)
			}
		})
	}
	for path, want := range map[string]int{
		"/ipfs/" + names[0].String():                                         http.StatusNotAcceptable,
		"/ipfs/" + names[0].String() + "?format=car":                         http.StatusNotAcceptable,
		"/ipfs/not-a-cid?format=raw":                                         http.StatusBadRequest,
		"/ipfs/QmVujd5Vb7moysJj8itnGufN7MEtPRCNHkKpNuA4onsRa3?format=raw":    http.StatusNotFound,
		"/ipfs/" + content.Sum([]byte("never was")).String() + "?format=raw": http.StatusNotFound,
		"/ipfs/" + strings.Repeat("b", 400) + "?format=raw":                  http.StatusBadRequest,
	} {
		if resp, b := g.do(t, http.MethodGet, path); resp.StatusCode != want || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %d", path, resp.StatusCode, b, want)
		}
	}
}

// TestAnswersToAnOperator: what is made has its status and place, conflicts their words,
// and what the operator has is not sent again.
func TestAnswersToAnOperator(t *testing.T) {
	l, n, g := publicNode(t)
	d := newDisk(t, l.Dir, imageSize, 124)
	token, err := os.ReadFile(filepath.Join(n.Data, api.TokenName))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, body string, header ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+apiAddress+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := g.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	source := fmt.Sprintf(`{"source":%q,"scope":"public"}`, d.path)
	resp, said := ask("PUT", "/api/images/open", source)
	place := resp.Header.Get("Location")
	if resp.StatusCode != http.StatusAccepted || !strings.HasPrefix(place, "/api/operations/") {
		t.Fatalf("import: %d %s, at %q", resp.StatusCode, said, place)
	}
	if resp, said := ask("GET", place+"/events", ""); resp.StatusCode != http.StatusOK || !strings.Contains(said, "\"state\":\"done\"") {
		t.Fatalf("events: %d %s", resp.StatusCode, said)
	}
	for _, x := range []struct {
		method, path, body string
		want               int
		has                string
	}{
		{"PUT", "/api/images/open", source, 409, `"code":"exists"`},
		{"PUT", "/api/images/open", `{"source":"relative"}`, 400, `"code":"bad_request"`},
		{"PUT", "/api/images/open/tags/stable", "", 200, `"target":"open"`},
		{"PUT", "/api/images/stable", strings.Replace(source, "}", `,"replace":true}`, 1), 409, `"code":"other_kind"`},
		{"PUT", "/api/volumes/v", `{"from":"image:open","transport":"nbd"}`, 201, `"state":"attached"`},
		{"PUT", "/api/volumes/v", `{"from":"image:open","transport":"nbd"}`, 200, `"state":"attached"`},
		{"PUT", "/api/volumes/v", `{"size":512}`, 409, `"code":"differs"`},
		{"PUT", "/api/volumes/v", `{"durability":"farm:9"}`, 400, `"code":"bad_request"`},
		{"PUT", "/api/volumes/w", `{"size":1048576,"takeover":true}`, 201, `"state":"attached"`},
		{"GET", "/api/images?limit=1", "", 200, `"name":"open"`},
		{"GET", "/api/images?limit=1&after=open", "", 200, `"name":"stable"`},
		{"GET", "/api/images?after=stable", "", 200, "[]"},
	} {
		if resp, said := ask(x.method, x.path, x.body); resp.StatusCode != x.want || !strings.Contains(said, x.has) {
			t.Errorf("%s %s %s: %d %s, want %d %s", x.method, x.path, x.body, resp.StatusCode, said, x.want, x.has)
		}
	}
	for _, path := range []string{"/api/resolve/open", "/api/images/open", "/api/images"} {
		resp, _ := ask("GET", path, "")
		if resp, said := ask("GET", path, "", "If-None-Match", resp.Header.Get("ETag")); resp.StatusCode != http.StatusNotModified || said != "" {
			t.Errorf("%s again: %d %s", path, resp.StatusCode, said)
		}
		run(t, n, "image", "import", "open", d.path, "--scope", "public", "--replace")
		if resp, said := ask("GET", path, "", "If-None-Match", resp.Header.Get("ETag")); resp.StatusCode != http.StatusOK {
			t.Errorf("%s after an import: %d %s", path, resp.StatusCode, said)
		}
	}
}
