package oci

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/node/oci/registry"
)

// TestEachBlobComesOnce: eight doors want one image at once; its registry sends each blob once, and may go
// then: all have it, and one that never saw it gets it from them.
func TestEachBlobComesOnce(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	s.image(t, "team/app", "1", 3<<20, 700, 0, 2<<20)
	f, doors := newFarm(t, s, 8)
	var all sync.WaitGroup
	for _, d := range doors {
		all.Go(func() {
			if _, err := d.pull(t, "team/app", "1"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	s.mu.Lock()
	for path, n := range s.gets {
		if n != 1 && !strings.HasSuffix(path, "/v2/") {
			t.Errorf("%s was sent %d times", path, n)
		}
	}
	if len(s.gets) != 6 {
		t.Errorf("%d things were sent: %v", len(s.gets), s.gets)
	}
	s.mu.Unlock()
	s.Close()
	for _, d := range append(doors, f.open("newcomer", t.TempDir())) {
		if _, err := d.pull(t, "team/app", "1"); err != nil {
			t.Errorf("without the registry: %v", err)
		}
	}
	before := time.Now()
	if got := doors[0].ask(t, http.MethodHead, "team/other/manifests/1"+ns); got.code != http.StatusNotFound || time.Since(before) > 2*time.Second {
		t.Errorf("what nobody has: %d after %v", got.code, time.Since(before))
	}
}

// TestPullerDies: the one that asks the registry dies in the middle, and another goes on.
func TestPullerDies(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	const size = 4 << 20
	top := s.image(t, "team/app", "1", size)
	_ = top
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var sent atomic.Int64
	s.hooked(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			next.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(&slow{ResponseWriter: w, sent: &sent, pause: func() {
			once.Do(func() { close(begun) })
			select {
			case <-goOn:
			case <-r.Context().Done():
			}
		}, at: size / 2}, r)
	})
	_, doors := newFarm(t, s, 4)
	var all sync.WaitGroup
	errs := make([]error, len(doors))
	for i, d := range doors {
		all.Go(func() { _, errs[i] = d.pull(t, "team/app", "1") })
	}
	<-begun
	var dead *site
	for _, d := range doors {
		d.blobs.mu.Lock()
		for _, x := range d.blobs.all {
			if _, _, pulls, _, _ := x.state(); pulls {
				dead = d
			}
		}
		d.blobs.mu.Unlock()
	}
	dead.end()
	close(goOn)
	all.Wait()
	for i, d := range doors {
		if d != dead && errs[i] != nil {
			t.Errorf("door %d: %v", i, errs[i])
		}
	}
	if n := sent.Load(); n > size*7/4 {
		t.Errorf("%d bytes were sent of %d: who went on began anew", n, size)
	}
}

// slow counts what is sent, and pauses once in the middle of a large answer.
type slow struct {
	http.ResponseWriter
	sent  *atomic.Int64
	pause func()
	at    int64
	here  int64
}

func (w *slow) Write(b []byte) (int, error) {
	if w.here < w.at && w.here+int64(len(b)) >= w.at {
		http.NewResponseController(w.ResponseWriter).Flush()
		w.pause()
	}
	n, err := w.ResponseWriter.Write(b)
	w.here += int64(n)
	w.sent.Add(int64(n))
	return n, err
}

// TestBadRegistries: one that is slow to begin, cuts off, knows no ranges, asks for patience or is broken is
// borne; one that lies is not believed.
func TestBadRegistries(t *testing.T) {
	t.Parallel()
	blobs := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
	}
	for _, c := range []struct {
		name  string
		hook  func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler)
		fails bool
	}{
		{name: "cuts off", hook: func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if blobs(r) && n < 4 {
				next.ServeHTTP(&cut{ResponseWriter: w, left: 300 << 10}, r)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		}},
		{name: "knows no ranges and cuts off", hook: func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			r.Header.Del("Range")
			if blobs(r) && n < 4 {
				next.ServeHTTP(&cut{ResponseWriter: w, left: 100 << 10 * int(n+1)}, r)
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		}},
		{name: "too many requests", hook: func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if blobs(r) && n == 0 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "lies", fails: true, hook: func(_ int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if blobs(r) {
				w = &flip{w}
			}
			next.ServeHTTP(w, r)
		}},
		{name: "lies once", hook: func(n int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if blobs(r) && n == 0 {
				w = &flip{w}
			}
			next.ServeHTTP(w, r)
		}},
		{name: "says another digest", fails: true, hook: func(_ int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodHead {
				w.Header().Set("Docker-Content-Digest", "sha256:0")
				w.Header().Set("Content-Length", "5")
				return
			}
			next.ServeHTTP(w, r)
		}},
		{name: "sends more", fails: true, hook: func(_ int64, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if blobs(r) {
				w.Write(random(8 << 20))
				return
			}
			next.ServeHTTP(w, r)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSource(t)
			s.image(t, "app", "1", 1<<20)
			var n atomic.Int64
			s.hooked(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				i := n.Load()
				if blobs(r) {
					n.Add(1)
				}
				c.hook(i, w, r, next)
			})
			_, doors := newFarm(t, s, 1)
			_, err := doors[0].pull(t, "app", "1")
			if (err != nil) != c.fails || err != nil && strings.Contains(err.Error(), "WRONG") {
				t.Errorf("%v, after %d requests", err, n.Load())
			}
			if n.Load() > 40 {
				t.Errorf("%d requests", n.Load())
			}
		})
	}
}

type cut struct {
	http.ResponseWriter
	left int
}

func (c *cut) Write(b []byte) (int, error) {
	b = b[:min(len(b), c.left)]
	n, err := c.ResponseWriter.Write(b)
	if c.left -= n; c.left == 0 && err == nil {
		http.NewResponseController(c.ResponseWriter).Flush()
		err = io.ErrShortWrite
	}
	return n, err
}

type flip struct{ http.ResponseWriter }

func (f *flip) Write(b []byte) (int, error) {
	out := append([]byte(nil), b...)
	out[0] ^= 1
	return f.ResponseWriter.Write(out)
}

func basic(user string) []string {
	return []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(user))}
}

// guarded has one repository be read by one user alone, by a scheme.
func guarded(s *source, scheme, repo, credential string) {
	s.hooked(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.URL.Path == "/token": // anybody gets one for what everybody may read
			fmt.Fprint(w, `{"token":"nobody"}`)
		case strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/") && r.Header.Get("Authorization") != credential,
			scheme == "Bearer" && r.Header.Get("Authorization") == "":
			challenge := `Basic realm="source"`
			if scheme == "Bearer" {
				challenge = fmt.Sprintf(`Bearer realm="%s/token",service="source",scope="repository:%s:pull"`, s.URL, strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")[0])
			}
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// TestPrivateStaysPrivate: what a user may not read in the registry is not read here, under whichever name,
// though it is here; and who has proved that they may reads it with the registry away.
func TestPrivateStaysPrivate(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			s := newSource(t)
			s.image(t, "secret", "1", 100<<10)
			s.image(t, "open", "1", 100<<10)
			right, wrong := basic("ann:good"), basic("ann:bad")
			if scheme == "Bearer" {
				right[1], wrong[1] = "Bearer good", "Bearer bad"
			}
			guarded(s, scheme, "secret", right[1])
			_, doors := newFarm(t, s, 2)
			layers, err := doors[0].pull(t, "secret", "1", right...)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := doors[0].pull(t, "open", "1"); err != nil {
				t.Fatal(err)
			}
			secret := digest.FromBytes(layers[1])
			refused := func(when string, code int) {
				t.Helper()
				for i, d := range doors {
					for _, header := range [][]string{nil, wrong, basic(":")} {
						got := d.ask(t, http.MethodGet, "secret/blobs/"+string(secret)+ns, header...)
						if got.code != http.StatusUnauthorized && got.code != code || got.code == http.StatusUnauthorized && !strings.Contains(got.header.Get("WWW-Authenticate"), scheme) {
							t.Errorf("%s, door %d, %q: %d %s %v", when, i, header, got.code, got.body, got.header)
						}
						if got := d.ask(t, http.MethodHead, "secret/manifests/1"+ns, header...); got.code != http.StatusUnauthorized && got.code != code {
							t.Errorf("%s, door %d, %q: tag: %d", when, i, header, got.code)
						}
					}
					for _, path := range []string{"open/blobs/" + string(secret) + ns, registryName + "/secret/blobs/" + string(secret), registryName + "/secret/manifests/1"} {
						if got := d.ask(t, http.MethodGet, path); got.code != http.StatusNotFound {
							t.Errorf("%s, door %d, %s: %d", when, i, path, got.code)
						}
					}
				}
			}
			refused("registry there", http.StatusUnauthorized)
			if got := doors[1].ask(t, http.MethodGet, "secret/blobs/"+string(secret)+ns, right...); got.code != http.StatusOK || digest.FromBytes(got.body) != secret {
				t.Errorf("who may, at another door: %d", got.code)
			}
			evil := newSource(t) // names a blob that it has not, and says that it has it
			m := evil.image(t, "app", "1", 10)
			text := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"digest":%q,"size":2},"layers":[{"digest":%q,"size":%d}]}`, m.Digest, secret, len(layers[1]))
			evil.hooked(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				var body []byte
				if strings.Contains(r.URL.Path, "/manifests/") {
					body = text
					w.Header().Set("Docker-Content-Digest", string(digest.FromBytes(text)))
				} else if r.Method == http.MethodGet {
					w.WriteHeader(http.StatusNotFound)
					return
				} else {
					body = layers[1]
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				if r.Method == http.MethodGet {
					w.Write(body)
				}
			})
			doors[0].cfg.Upstreams["evil.example"] = evil.URL
			for _, path := range []string{"manifests/1", "manifests/" + string(digest.FromBytes(text))} {
				if got := doors[0].ask(t, http.MethodGet, "app/"+path+"?ns=evil.example"); got.code != http.StatusOK {
					t.Fatalf("%s: %d %s", path, got.code, got.body)
				}
			}
			if got := doors[0].ask(t, http.MethodGet, "app/blobs/"+string(secret)+"?ns=evil.example"); got.code != http.StatusNotFound {
				t.Errorf("by a manifest of somebody else: %d", got.code)
			}
			if n := s.got(string(secret)); n != 1+2*2*0 && n > 1+12 { // the refused have asked too
				t.Errorf("it was sent %d times", n)
			}
			s.Close()
			refused("registry away", http.StatusNotFound)
			if _, err := doors[0].pull(t, "secret", "1", right...); err != nil {
				t.Errorf("who may, without the registry: %v", err)
			}
			if _, err := doors[0].pull(t, "open", "1"); err != nil {
				t.Errorf("what everybody may, without the registry: %v", err)
			}
		})
	}
}

// TestPlatforms: of an index those platforms come that somebody asks for.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	one, other := s.image(t, "multi", "", 50<<10), s.image(t, "multi", "", 50<<10)
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{one, other}}
	index.SchemaVersion = 2
	s.manifest(t, "multi", "1", index, index.MediaType)
	_, doors := newFarm(t, s, 2)
	if got := doors[0].ask(t, http.MethodGet, "multi/manifests/1"+ns); got.code != http.StatusOK || got.header.Get("Content-Type") != index.MediaType {
		t.Fatalf("%d %v", got.code, got.header)
	}
	if _, err := doors[0].pull(t, "multi", string(one.Digest)); err != nil {
		t.Fatal(err)
	}
	if n := s.got(string(other.Digest)); n != 0 {
		t.Errorf("a platform that nobody asked for was fetched %d times", n)
	}
	if _, err := doors[1].pull(t, "multi", string(other.Digest)); err != nil {
		t.Error(err)
	}
}

// TestPartsAndNonsense: parts of blobs are what they should be; what is no name or digest is refused.
func TestPartsAndNonsense(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	s.image(t, "app", "1", 300<<10)
	_, doors := newFarm(t, s, 1)
	d := doors[0]
	layers, err := d.pull(t, "app", "1")
	if err != nil {
		t.Fatal(err)
	}
	layer := layers[1]
	blob := "app/blobs/" + string(digest.FromBytes(layer)) + ns
	for _, c := range []struct {
		part     string
		from, to int
	}{{"bytes=0-9", 0, 10}, {"bytes=100000-", 100000, len(layer)}, {"bytes=307199-400000", 307199, len(layer)}} {
		got := d.ask(t, http.MethodGet, blob, "Range", c.part)
		if got.code != http.StatusPartialContent || string(got.body) != string(layer[c.from:c.to]) {
			t.Errorf("%s: %d, %d bytes", c.part, got.code, len(got.body))
		}
	}
	if got := d.ask(t, http.MethodHead, blob); got.code != http.StatusOK || got.header.Get("Content-Length") != fmt.Sprint(len(layer)) {
		t.Errorf("head: %d %v", got.code, got.header)
	}
	if got := d.ask(t, http.MethodGet, blob, "Range", "bytes=400000-"); got.code != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("behind the end: %d", got.code)
	}
	for _, path := range []string{
		"app/manifests/1?ns=../../etc", "app/manifests/1?ns=a/b", "app/manifests/1?ns=user@host", "APP/manifests/1" + ns, "../app/manifests/1" + ns, "app/manifests/..%2f..%2fx" + ns,
		"app/blobs/sha256:0" + ns, "app/blobs/sha512:" + strings.Repeat("0", 128) + ns, "app/blobs/../../x" + ns, "app/manifests/1?ns=elsewhere.example", strings.Repeat("a/", 200) + "a/manifests/1" + ns,
		"app/manifests/1?ns=169.254.169.254",
	} {
		if got := d.ask(t, http.MethodGet, path); got.code < 400 || got.code >= 500 {
			t.Errorf("%s: %d %s", path, got.code, got.body)
		}
	}
	for _, header := range [][]string{{"Origin", "https://page.example"}, {"Sec-Fetch-Site", "cross-site"}} {
		if got := d.ask(t, http.MethodGet, blob, header...); got.code != http.StatusForbidden {
			t.Errorf("a page in a browser, by %v: %d", header, got.code)
		}
	}
	s.image(t, "large", "1", registry.ManifestMax+1)
	large, err := d.pull(t, "large", "1")
	if err != nil {
		t.Fatal(err)
	}
	if got := d.ask(t, http.MethodGet, "large/manifests/"+digest.FromBytes(large[len(large)-1]).String()+ns); got.code != http.StatusNotFound || !strings.Contains(string(got.body), "may have") {
		t.Errorf("a layer that is asked for as a manifest: %d %s", got.code, got.body)
	}
	if got := d.ask(t, http.MethodGet, ""); got.code != http.StatusOK && got.code != http.StatusUnauthorized {
		t.Errorf("the door itself: %d", got.code)
	}
}

// TestBlobsStay: they outlast a start, unless their bytes have changed; and what they take is bounded.
func TestBlobsStay(t *testing.T) {
	t.Parallel()
	s := newSource(t)
	s.image(t, "app", "1", 500<<10)
	s.image(t, "app", "2", 600<<10)
	s.image(t, "huge", "1", 2<<20)
	f, _ := newFarm(t, s, 0)
	f.terms.Quota = 1 << 20
	id, dir := peer.ID(rand.Text()), t.TempDir()
	d := f.open(id, dir)
	layers, err := d.pull(t, "app", "1")
	if err != nil {
		t.Fatal(err)
	}
	d.end()
	s.hooked(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
	d = f.open(id, dir)
	if _, err := d.pull(t, "app", "1"); err != nil {
		t.Errorf("after a start: %v", err)
	}
	d.end()
	file := filepath.Join(dir, "blobs", wholeDir, digest.FromBytes(layers[1]).Encoded())
	layers[1][100] ^= 1
	if err := os.WriteFile(file, layers[1], 0o600); err != nil {
		t.Fatal(err)
	}
	s.hooked(nil)
	d = f.open(id, dir)
	if _, err := d.pull(t, "app", "1"); err != nil {
		t.Errorf("after a change of its bytes: %v", err)
	}
	if _, err := d.pull(t, "app", "2"); err != nil {
		t.Errorf("beyond the quota: %v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the older layer is still there: %v", err)
	}
	if _, err := d.pull(t, "huge", "1"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a layer that has no room: %v", err)
	}
	files, err := os.ReadDir(filepath.Join(dir, "blobs", partDir))
	if err != nil || len(files) > 0 {
		t.Errorf("%d parts stay, %v", len(files), err)
	}
}
