package oci

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ocimem"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// noTrees is the library of a mesh that has none: what is tested here goes without.
type noTrees struct{}

func (noTrees) TreeRoot(context.Context, string) (r fetch.Root, err error) {
	return r, content.ErrNotFound
}
func (noTrees) OpenTree(context.Context, string) (t *tree.Tree, h pack.Head, err error) {
	return t, h, content.ErrNotFound
}
func (noTrees) List(context.Context, content.RootKind, string, int) (i []images.Image, more bool, err error) {
	return nil, false, nil
}
func (noTrees) Stow(context.Context, images.Updater, images.ToStow) (i catalog.Image, s images.Stowed, err error) {
	return i, s, content.ErrForbidden
}
func (noTrees) PublishTree(context.Context, string, catalog.Image) error { return content.ErrForbidden }

func (noTrees) Remove(context.Context, string) (r images.Removed, err error) {
	return r, content.ErrForbidden
}

// source is a registry that others are mirrors of.
type source struct {
	*httptest.Server
	mem ociregistry.Interface

	mu   sync.Mutex
	gets map[string]int // GETs by path
	// hook answers a request, or has it answered as it should be.
	hook func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func newSource(t *testing.T) *source {
	s := &source{mem: ocimem.New(), gets: map[string]int{}}
	next := ociserver.New(s.mem, nil)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if r.Method == http.MethodGet {
			s.gets[r.URL.Path]++
		}
		hook := s.hook
		s.mu.Unlock()
		if hook != nil {
			hook(w, r, next)
		} else {
			next.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *source) hooked(hook func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// got is how often something was sent, by what its path ends with.
func (s *source) got(end string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, times := range s.gets {
		if strings.HasSuffix(path, end) {
			n += times
		}
	}
	return n
}

func (s *source) blob(t *testing.T, repo string, b []byte, media string) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if _, err := s.mem.PushBlob(t.Context(), repo, d, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return d
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// image publishes one with layers of some sizes, and returns what stands for it.
func (s *source) image(t *testing.T, repo, tag string, sizes ...int) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: s.blob(t, repo, fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","author":%q}`, rand.Text()), ocispec.MediaTypeImageConfig)}
	m.SchemaVersion = 2
	for _, size := range sizes {
		m.Layers = append(m.Layers, s.blob(t, repo, random(size), ocispec.MediaTypeImageLayer))
	}
	return s.manifest(t, repo, tag, m, m.MediaType)
}

func (s *source) manifest(t *testing.T, repo, tag string, m any, media string) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(m)
	if err == nil {
		_, err = s.mem.PushManifest(t.Context(), repo, tag, b, media)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// farm is some doors that reach each other.
type farm struct {
	t *testing.T
	// terms are those of doors that open from now on.
	terms Terms

	mu   sync.Mutex
	live []peer.ID
	all  map[peer.ID]*site
}

// site is one door and where it is reached.
type site struct {
	*Door
	server *httptest.Server
	id     peer.ID
	dir    string
	end    func()
}

const registryName = "reg.example"

func newFarm(t *testing.T, s *source, doors int) (*farm, []*site) {
	f := &farm{t: t, terms: Terms{Address: "127.0.0.1:5050", Upstreams: map[string]string{registryName: s.URL}}, all: map[peer.ID]*site{}}
	var out []*site
	for range doors {
		out = append(out, f.open(peer.ID(rand.Text()), t.TempDir()))
	}
	return f, out
}

func (f *farm) open(id peer.ID, dir string) *site {
	f.t.Helper()
	d, err := New(Config{
		Terms: f.terms, Dir: dir, Library: noTrees{}, Self: id, Farm: "farm", Codec: content.NewCodec(), Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Live: func() []peer.ID { f.mu.Lock(); defer f.mu.Unlock(); return f.live },
		Call: func(ctx context.Context, to peer.ID, method string, body []byte) ([]byte, error) {
			f.mu.Lock()
			other := f.all[to]
			f.mu.Unlock()
			if other == nil {
				return nil, content.ErrUnavailable
			}
			return other.Answer(ctx, exchange.Peer{ID: id, Identity: trust.Identity{Role: trust.RoleNode, Farm: "farm"}}, method, body)
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	s := &site{Door: d, server: httptest.NewServer(d), id: id, dir: dir}
	s.end = sync.OnceFunc(func() {
		f.mu.Lock()
		delete(f.all, id)
		live := []peer.ID{}
		for _, other := range f.live {
			if other != id {
				live = append(live, other)
			}
		}
		f.live = live
		f.mu.Unlock()
		cancel()
		s.server.CloseClientConnections()
		s.server.Close()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(s.end)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[id], f.live = s, append(f.live[:len(f.live):len(f.live)], id)
	return s
}

// answer is what a door said.
type answer struct {
	code   int
	header http.Header
	body   []byte
	err    error // that cut it short
}

func (s *site) ask(t *testing.T, method, path string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.server.URL+"/v2/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer got.Body.Close()
	b, err := io.ReadAll(got.Body)
	return answer{got.StatusCode, got.Header, b, err}
}

const ns = "?ns=" + registryName

// pull does what containerd does, and returns the layers.
func (s *site) pull(t *testing.T, repo, tag string, header ...string) (layers [][]byte, err error) {
	t.Helper()
	want := func(a answer, d digest.Digest) error {
		switch {
		case a.err != nil:
			return a.err
		case a.code != http.StatusOK:
			return fmt.Errorf("status %d: %s", a.code, a.body)
		case d != "" && digest.FromBytes(a.body) != d:
			return fmt.Errorf("WRONG bytes for %s", d)
		}
		return nil
	}
	head := s.ask(t, http.MethodHead, repo+"/manifests/"+tag+ns, header...)
	if err := want(head, ""); err != nil {
		return nil, err
	}
	top := digest.Digest(head.header.Get("Docker-Content-Digest"))
	got := s.ask(t, http.MethodGet, repo+"/manifests/"+string(top)+ns, header...)
	if err := want(got, top); err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(got.body, &m); err != nil {
		return nil, err
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		got := s.ask(t, http.MethodGet, repo+"/blobs/"+string(d.Digest)+ns, header...)
		if err := want(got, d.Digest); err != nil {
			return nil, err
		}
		layers = append(layers, got.body)
	}
	return layers, nil
}
