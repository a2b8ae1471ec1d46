package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// pushesMax bounds the images that are stored at once: each takes the disk and the line.
	pushesMax = 2
	// pushTries is how often a name is written over what others write meanwhile.
	pushTries = 5
	// nestedMax bounds indexes of indexes.
	nestedMax = 4
	// bodyStall is how long a client may send nothing of what it pushes.
	bodyStall = time.Minute
	// subjectNote is the annotation of a tree's index that says which manifest the image is about.
	subjectNote = "io.grange.subject"
)

type tokenKey struct{}

// WithToken marks a request's context as one that has shown the node's token.
func WithToken(ctx context.Context) context.Context { return context.WithValue(ctx, tokenKey{}, true) }

func showsToken(ctx context.Context) bool { return ctx.Value(tokenKey{}) != nil }

// isPush tells what changes something, or is about it.
func isPush(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead || strings.Contains(r.URL.Path, "/blobs/uploads/")
}

// admitPush returns the request as the server is to have it; nil where it is answered already.
func (d *Door) admitPush(w http.ResponseWriter, r *http.Request, a *asker) *http.Request {
	if ping := strings.TrimSuffix(r.URL.Path, "/") == "/v2" && d.cfg.MayPublish; !isPush(r) && !ping {
		return r
	}
	var err error
	_, ref, isManifestPath := strings.Cut(r.URL.Path, "/manifests/")
	switch {
	case !d.cfg.MayPublish:
		err = ociregistry.NewError("this node's role may not publish: push to a publisher or admin of the mesh", ociregistry.ErrDenied.Code(), nil)
	case !showsToken(r.Context()): // docker shows nothing to who does not ask for it at its first question
		err = &registry.Refusal{Challenge: `Basic realm="grange"`}
	case a.registry != "" && isPush(r):
		err = ociregistry.NewHTTPError(fmt.Errorf("nothing is pushed through to %s: push there, or to this address without it", a.registry), http.StatusMethodNotAllowed, nil, nil)
	case r.Method == http.MethodPut && isManifestPath && !ociref.IsValidTag(ref) && !ociref.IsValidDigest(ref):
		err = ociregistry.NewHTTPError(fmt.Errorf("%.128q is no tag or digest", ref), http.StatusBadRequest, nil, nil)
	case isManifestPath && r.ContentLength > registry.ManifestMax:
		err = ociregistry.NewHTTPError(fmt.Errorf("a manifest of %d bytes: it may have %d", r.ContentLength, registry.ManifestMax), http.StatusRequestEntityTooLarge, nil, nil)
	}
	if err != nil {
		d.writeError(w, r, err)
		return nil
	}
	r.Body = &pacedBody{r.Body, http.NewResponseController(w)}
	if isManifestPath {
		r.Body = http.MaxBytesReader(w, r.Body, registry.ManifestMax)
	}
	repo, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/uploads/")
	if r.Method == http.MethodDelete && id != "" {
		d.cancelUpload(w, r, repo, id)
		return nil
	}
	if q := r.URL.Query(); r.Method == http.MethodPost && q.Get("from") != "" {
		if _, err := d.resolveOwn(r.Context(), registry.Place{Repo: q.Get("from")}, q.Get("mount"), false); err != nil {
			q.Del("mount") // the client sends it then
			q.Del("from")
			r.URL.RawQuery = q.Encode()
		}
	}
	return r
}

// pacedBody has a client send on, or be cut off.
type pacedBody struct {
	io.ReadCloser
	answer *http.ResponseController
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.answer.SetReadDeadline(time.Now().Add(bodyStall)) // of a connection that has none, nothing is lost
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.answer.SetReadDeadline(time.Time{}) // the server waits for the next request by its own
	}
	return n, err
}

func (d *Door) cancelUpload(w http.ResponseWriter, r *http.Request, repo, id string) {
	u, err := d.resumeUpload(r.Context(), repo, uploadID(id), -1)
	if err != nil {
		d.writeError(w, r, err)
		return
	}
	u.cancel()
	w.WriteHeader(http.StatusNoContent)
}

// statusOf is that of what went wrong with a push.
func statusOf(err error) int {
	switch {
	case errors.Is(err, content.ErrNoSpace):
		return http.StatusInsufficientStorage
	case errors.Is(err, content.ErrForbidden):
		return http.StatusForbidden
	case errors.Is(err, content.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, content.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, content.ErrUnavailable):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// mount has a blob of one repository be one of another too.
func (d *Door) mount(ctx context.Context, fromRepo, repo string, id ociregistry.Digest) (out ociregistry.Descriptor, err error) {
	it, err := d.resolveOwn(ctx, registry.Place{Repo: fromRepo}, string(id), false)
	if err != nil {
		return out, err
	}
	x, err := d.bring(ctx, registry.Place{Repo: fromRepo}, it, "")
	if err != nil {
		return out, err
	}
	if _, err = x.await(ctx, it.Size, it.Size); err != nil {
		x.close()
		return out, err
	}
	return descriptor(it, d.keep(registry.Place{Repo: repo}, registry.Item{Digest: it.Digest, Size: it.Size}, x))
}

func invalid(format string, args ...any) error {
	return ociregistry.NewError(fmt.Sprintf(format, args...), ociregistry.ErrManifestInvalid.Code(), nil)
}

func isManifest(media string) bool {
	return media != "" && media != "*/*" && strings.HasPrefix(media, "application/vnd.") && strings.Contains(registry.Accepted, media+",")
}

// pushManifest publishes an image all of whose blobs are here, as a tree, in place of the one that the tag stood for.
func (d *Door) pushManifest(ctx context.Context, repo, tag string, b []byte, media string) (out ociregistry.Descriptor, err error) {
	p := registry.Place{Repo: repo}
	top := registry.Item{Digest: digest.FromBytes(b), Size: int64(len(b)), Media: media, Manifest: true}
	top.Ref = cmp.Or(tag, string(top.Digest))
	m, err := registry.ParseManifest(b)
	_, likeDigest := cutDigest(tag)
	switch {
	case err != nil:
		return out, invalid("%s", content.Line(err))
	case likeDigest:
		return out, invalid("tag %s: tags of this form stand for digests here", tag)
	case !isManifest(media) || m.MediaType != "" && m.MediaType != media:
		return out, invalid("it comes as %q, and says that it is %q: want a manifest or index of OCI or Docker, in both", media, m.MediaType)
	case m.IsIndex() != (media == ocispec.MediaTypeImageIndex || strings.HasSuffix(media, ".list.v2+json")):
		return out, invalid("it comes as %s, and is none", media)
	}
	name, err := p.Name(top.Ref)
	if err != nil {
		return out, ociregistry.NewError(content.Line(err), ociregistry.ErrNameInvalid.Code(), nil)
	}
	if err := d.pushing.Acquire(ctx, 1); err != nil {
		return out, err
	}
	defer d.pushing.Release(1)
	stage, err := os.MkdirTemp(d.cfg.Dir, "stage-")
	if err != nil {
		return out, noRoom(err)
	}
	defer os.RemoveAll(stage)
	named, err := d.stage(ctx, stage, p, b, m)
	if err == nil {
		err = describe(stage, brought, noted(top, m))
	}
	if err == nil {
		err = d.publishPushed(ctx, name, stage)
	}
	if err != nil {
		return out, noRoom(fmt.Errorf("push %q: %w", name, err))
	}
	d.known.Learn(p, top, m)
	for _, id := range named {
		d.unkeep(p, id)
	}
	d.cfg.Log.Info("an image was pushed", "name", name, "digest", top.Digest)
	return descriptor(top, nil)
}

// publishPushed stores a layout and gives it a name. Of two at once the later has it.
func (d *Door) publishPushed(ctx context.Context, name, dir string) error {
	body, _, err := d.cfg.Library.Stow(ctx, quiet{}, images.ToStow{Dir: dir, Scope: content.Mesh()})
	if err != nil {
		return err
	}
	body.Source = name
	for range pushTries {
		if err = d.cfg.Library.PublishTree(ctx, name, body); !errors.Is(err, content.ErrConflict) && !errors.Is(err, content.ErrExists) {
			break
		}
	}
	return err
}

// quiet shows nobody how far something is, and nobody halts it: the client waits.
type quiet struct{}

// Update and Pass implement images.Updater.
func (quiet) Update(func(*operations.View))  {}
func (quiet) Pass(ctx context.Context) error { return context.Cause(ctx) }

// noted is what the index of a tree says of its image.
func noted(top registry.Item, m registry.Manifest) ocispec.Descriptor {
	out := ocispec.Descriptor{MediaType: top.Media, Digest: top.Digest, Size: top.Size, ArtifactType: m.Type, Annotations: map[string]string{}}
	if m.Subject != nil {
		if top.Size < registry.ManifestMax/2 { // an index has bounds as manifests have
			maps.Copy(out.Annotations, m.Notes)
		}
		if out.Annotations[subjectNote] = string(m.Subject.Digest); m.Config != nil {
			out.ArtifactType = cmp.Or(m.Type, m.Config.MediaType)
		}
	}
	out.Annotations[ocispec.AnnotationRefName] = top.Ref
	return out
}

// stage makes an OCI layout of a manifest and all that it names, which has to be here, and returns the digests of that.
func (d *Door) stage(ctx context.Context, dir string, p registry.Place, b []byte, m registry.Manifest) (named []digest.Digest, err error) {
	blobs := filepath.Join(dir, blobsDir, string(digest.SHA256))
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(blobs, digest.FromBytes(b).Encoded()), b, 0o644); err != nil {
		return nil, err
	}
	level := []registry.Manifest{m}
	for range nestedMax {
		next := []registry.Manifest{}
		for _, m := range level {
			for _, one := range m.Named() {
				if named = append(named, one.Digest); len(named) > registry.NamesMax {
					return nil, invalid("it names more than %d others", registry.NamesMax)
				}
				below, err := d.stageOne(ctx, blobs, p, one)
				if err != nil {
					return nil, err
				}
				next = append(next, below...)
			}
		}
		if level = next; len(level) == 0 {
			return named, nil
		}
	}
	return nil, invalid("indexes are nested more than %d deep", nestedMax)
}

// stageOne has one blob in a folder, and returns what it is if that is a manifest.
func (d *Door) stageOne(ctx context.Context, blobs string, p registry.Place, one ocispec.Descriptor) ([]registry.Manifest, error) {
	it, err := d.resolveOwn(ctx, p, string(one.Digest), false)
	if err != nil || it.Size != one.Size {
		return nil, ociregistry.NewError(fmt.Sprintf("%s of %d bytes is not in %s: push it first", one.Digest, one.Size, p), ociregistry.ErrManifestBlobUnknown.Code(), nil)
	}
	it.Manifest = isManifest(one.MediaType)
	b, err := d.put(ctx, blobs, p, it)
	if err != nil || !it.Manifest {
		return nil, err
	}
	m, err := registry.ParseManifest(b)
	return []registry.Manifest{m}, err
}
