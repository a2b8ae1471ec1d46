package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"cuelabs.dev/go/oci/ociregistry/ociserver"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// QuotaDefault is how much of the disk blobs may take: those of some dozen images.
	QuotaDefault = 20 << 30
	// requestsMax bounds the requests that are served at once: containerd sends some three an image.
	requestsMax = 512
	// saveEvery is how often what is known is written.
	saveEvery = 5 * time.Second
	// registriesMax bounds the registries that are remembered to be away: clients may name any.
	registriesMax = 256
)

// Terms are what an operator says of the door.
type Terms struct {
	// Address is HOST:PORT of loopback; "" for no door.
	Address string
	// Quota bounds what blobs take of the disk.
	Quota int64
	// Upstreams are the registries that are asked, each with its URL, or "" for where everybody knows
	// it to be; nil is all.
	Upstreams map[string]string
}

// Library has the trees that images are; [images.Images] implements it.
type Library interface {
	// TreeRoot says what a name stands for, and OpenTree opens that.
	TreeRoot(ctx context.Context, name string) (fetch.Root, error)
	OpenTree(ctx context.Context, name string) (*tree.Tree, pack.Head, error)
	// List returns names behind one.
	List(ctx context.Context, root content.RootKind, after string, limit int) (page []images.Image, more bool, err error)
	// Stow stores what is in a folder, and PublishTree gives it a name.
	Stow(ctx context.Context, op images.Updater, what images.ToStow) (catalog.Image, images.Stowed, error)
	PublishTree(ctx context.Context, name string, body catalog.Image) error
	// Remove takes a name back.
	Remove(ctx context.Context, name string) (images.Removed, error)
}

// Config is what a Door is built from.
type Config struct {
	Terms
	// Dir is for the door's files.
	Dir        string
	Library    Library
	Operations *operations.Operations
	// Self is this node, and Live all of the farm; Call asks one of them.
	Self peer.ID
	Live func() []peer.ID
	Call func(ctx context.Context, to peer.ID, method string, body []byte) ([]byte, error)
	// Farm is this node's; MayPublish says whether it may bring in images.
	Farm       string
	MayPublish bool
	Codec      *content.Codec
	Now        func() time.Time
	Log        *slog.Logger
}

// Door is the registry of this node. Use: New, then Run; ServeHTTP and Answer meanwhile.
type Door struct {
	cfg       Config
	known     *registry.Known
	blobs     *blobs
	lead      *lead
	trees     *lru.Cache[string, *opened]
	server    http.Handler
	requests  *semaphore.Weighted
	flights   *semaphore.Weighted
	publishes publishes
	pushes    pushes
	pushing   *semaphore.Weighted
	bytes     *prometheus.CounterVec // that came, by source

	running context.Context // of what goes on after a request
	stop    context.CancelFunc
	work    sync.WaitGroup

	mu        sync.Mutex // guards what follows
	upstreams *lru.Cache[string, *registry.Upstream]
}

// New opens the door's folder; it is nil without an address.
func New(cfg Config) (*Door, error) {
	if cfg.Address == "" {
		return nil, nil
	}
	err := os.MkdirAll(cfg.Dir, 0o700)
	d := &Door{cfg: cfg, requests: semaphore.NewWeighted(requestsMax), flights: semaphore.NewWeighted(flightsMax), pushing: semaphore.NewWeighted(pushesMax)}
	d.pushes.uploads, d.pushes.kept = map[string]*upload{}, map[string]kept{}
	d.bytes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "grange_oci_bytes_total", Help: "Bytes of blobs that came, by where from."}, []string{"source"})
	d.running, d.stop = context.WithCancel(context.Background())
	if cfg.Quota <= 0 {
		d.cfg.Quota = QuotaDefault
	}
	if err == nil {
		if d.known, err = registry.OpenKnown(filepath.Join(cfg.Dir, "known.json"), cfg.Now); errors.Is(err, content.ErrCorrupt) { // hints alone, for which no node stays away
			cfg.Log.Warn("the door for images begins without", "err", err)
			err = nil
		}
	}
	if err == nil {
		d.blobs, err = openBlobs(filepath.Join(cfg.Dir, "blobs"), d.cfg.Quota)
	}
	if err == nil {
		d.upstreams, err = lru.New[string, *registry.Upstream](registriesMax)
	}
	if err == nil {
		d.trees, err = lru.New[string, *opened](treesMax)
	}
	if err == nil {
		d.lead, err = newLead(cfg.Now)
	}
	if err == nil {
		d.publishes.at, err = lru.New[string, time.Time](registry.TagsMax)
	}
	if err != nil {
		return nil, err
	}
	d.server = ociserver.New(d.registry(), &ociserver.Options{WriteError: d.writeError, MaxListPageSize: registry.NamesMax})
	return d, nil
}

// Run keeps what is known until ctx ends; then nothing goes on any more. A nil Door runs too.
func (d *Door) Run(ctx context.Context) error {
	if d == nil {
		return nil
	}
	tick := time.Tick(saveEvery)
	for {
		select {
		case <-tick:
			d.sweep()
			if err := d.known.Save(); err != nil {
				d.cfg.Log.Warn("what is known of registries can't be kept", "err", err)
			}
		case <-ctx.Done():
			d.stop()
			d.work.Wait()
			return d.known.Save()
		}
	}
}

// Collectors returns what there is to measure.
func (d *Door) Collectors() []prometheus.Collector {
	if d == nil {
		return nil
	}
	return []prometheus.Collector{d.bytes}
}

// Address is where the door is to be.
func (d *Door) Address() string { return d.cfg.Address }

// asker is who sent a request: what it asks for is in that registry, with that credential.
type asker struct {
	registry, credential string
	ranged               bool  // it says which part it sends
	failed               error // why what it sends is not taken
}

type askerKey struct{}

// nobody is what clients send who have no credential and were asked for one.
const nobody = "Basic Og=="

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !d.requests.TryAcquire(1) {
		w.Header().Set("Retry-After", "1")
		d.writeError(w, r, ociregistry.ErrTooManyRequests)
		return
	}
	defer d.requests.Release(1)
	if host, _, err := net.SplitHostPort(r.Host); err != nil || host != "localhost" && !net.ParseIP(host).IsLoopback() || r.Header.Get("Origin")+r.Header.Get("Sec-Fetch-Site") != "" {
		d.writeError(w, r, ociregistry.ErrDenied) // a page in a browser, under a name of its own for this host, or with a picture from here
		return
	}
	a := &asker{registry: r.URL.Query().Get("ns"), credential: r.Header.Get("Authorization"), ranged: r.Header.Get("Content-Range") != ""}
	if a.registry == d.cfg.Address {
		a.registry = ""
	}
	if a.credential == nobody || showsToken(r.Context()) {
		a.credential = ""
	}
	if a.registry != "" && !ociref.IsValidHost(a.registry) {
		d.writeError(w, r, ociregistry.ErrNameInvalid)
		return
	}
	w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	r = r.WithContext(context.WithValue(r.Context(), askerKey{}, a))
	if r = d.admitPush(w, r, a); r != nil {
		d.fromEnd(r)
		d.server.ServeHTTP(w, r)
	}
}

// fromEnd says a range that counts from a blob's end as the server knows it.
func (d *Door) fromEnd(r *http.Request) {
	last, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=-")
	n, err := strconv.ParseInt(last, 10, 64)
	repo, id, isBlob := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	if !ok || err != nil || n <= 0 || !isBlob || r.Method != http.MethodGet {
		return
	}
	if it, err := d.resolve(r.Context(), repo, id, false); err == nil {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", max(0, it.Size-n)))
	}
}

func askerOf(ctx context.Context) *asker {
	if a, ok := ctx.Value(askerKey{}).(*asker); ok {
		return a
	}
	return &asker{}
}

// from returns where a client looks for a repository, and its credential.
func from(ctx context.Context, repo string) (registry.Place, string) {
	a := askerOf(ctx)
	return registry.Place{Registry: a.registry, Repo: repo}, a.credential
}

// upstream returns the registry of a repository; nil where there is none to ask.
func (d *Door) upstream(p registry.Place) *registry.Upstream {
	given, listed := d.cfg.Upstreams[p.Registry]
	if p.Registry == "" || d.cfg.Upstreams != nil && !listed {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	u, ok := d.upstreams.Get(p.Registry)
	if !ok {
		u = registry.NewUpstream(p.Registry, given, d.cfg.Now)
		d.upstreams.Add(p.Registry, u)
	}
	return u
}

// registry is what the server calls.
func (d *Door) registry() *ociregistry.Funcs {
	return &ociregistry.Funcs{
		PushBlob_: d.pushBlob, MountBlob_: d.mount, PushManifest_: d.pushManifest, DeleteTag_: d.deleteTag, DeleteManifest_: d.deleteManifest,
		PushBlobChunked_: func(ctx context.Context, repo string, _ int) (ociregistry.BlobWriter, error) {
			return written(d.beginUpload(ctx, repo))
		},
		PushBlobChunkedResume_: func(ctx context.Context, repo, id string, offset int64, _ int) (ociregistry.BlobWriter, error) {
			return written(d.resumeUpload(ctx, repo, id, offset))
		},
		Repositories_: d.repositories, Tags_: d.tags, Referrers_: d.referrers,
		GetBlob_: func(ctx context.Context, repo string, id ociregistry.Digest) (ociregistry.BlobReader, error) {
			return d.open(ctx, repo, id, false, wanted{0, -1})
		},
		GetBlobRange_: func(ctx context.Context, repo string, id ociregistry.Digest, from, to int64) (ociregistry.BlobReader, error) {
			return d.open(ctx, repo, id, false, wanted{from, to})
		},
		GetManifest_: func(ctx context.Context, repo string, id ociregistry.Digest) (ociregistry.BlobReader, error) {
			return d.open(ctx, repo, id, true, wanted{0, -1})
		},
		GetTag_: func(ctx context.Context, repo, tag string) (ociregistry.BlobReader, error) {
			it, err := d.resolve(ctx, repo, tag, true)
			if err != nil {
				return nil, err
			}
			return d.open(ctx, repo, ociregistry.Digest(it.Digest), true, wanted{0, -1})
		},
		ResolveBlob_: func(ctx context.Context, repo string, id ociregistry.Digest) (ociregistry.Descriptor, error) {
			return descriptor(d.resolve(ctx, repo, string(id), false))
		},
		ResolveManifest_: func(ctx context.Context, repo string, id ociregistry.Digest) (ociregistry.Descriptor, error) {
			return descriptor(d.resolve(ctx, repo, string(id), true))
		},
		ResolveTag_: func(ctx context.Context, repo, tag string) (ociregistry.Descriptor, error) {
			return descriptor(d.resolve(ctx, repo, tag, true))
		},
	}
}

func descriptor(it registry.Item, err error) (ociregistry.Descriptor, error) {
	return ociregistry.Descriptor{Digest: it.Digest, Size: it.Size, MediaType: cmp.Or(it.Media, registry.Octets)}, err
}

// writeError answers with an error as the protocol has it. What isn't here is a 404, whatever the
// reason: containerd goes on to the registry itself then.
func (d *Door) writeError(w http.ResponseWriter, r *http.Request, err error) {
	if a := askerOf(r.Context()); a.failed != nil {
		err = a.failed
	}
	refused, isRefused := errors.AsType[*registry.Refusal](err)
	_, known := errors.AsType[ociregistry.Error](err)
	if !known {
		_, known = errors.AsType[ociregistry.HTTPError](err)
	}
	switch {
	case isRefused && refused.Challenge != "":
		w.Header().Set("WWW-Authenticate", refused.Challenge)
		err = ociregistry.ErrUnauthorized
	case isRefused:
		err = ociregistry.ErrDenied
	case known:
	case isPush(r):
		d.cfg.Log.Warn("what a client pushes is not taken", "path", r.URL.Path, "err", err)
		err = ociregistry.NewHTTPError(errors.New(content.Line(err)), statusOf(err), nil, nil)
	default:
		if !errors.Is(err, content.ErrNotFound) && r.Context().Err() == nil {
			d.cfg.Log.Warn("a container runtime is sent to the registry itself", "registry", r.URL.Query().Get("ns"), "path", r.URL.Path, "err", err)
		}
		err = ociregistry.NewError(content.Line(err), ociregistry.ErrManifestUnknown.Code(), nil)
	}
	_ = ociregistry.WriteError(w, err) // a client that is gone needs none
}
