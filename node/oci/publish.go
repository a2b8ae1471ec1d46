package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// publishKind is what operations that publish an image are called.
	publishKind = "oci-publish"
	// publishAgain is how long after one was asked for the same is not, and settle how long after a blob of
	// it was wanted the first: those who pull have the line.
	publishAgain, settle = 5 * time.Minute, 2 * time.Second
	// publishTries is how often one is asked for.
	publishTries = 4
	// fetchesMax is how many blobs are brought in at once to be published.
	fetchesMax = 3
)

// image is what is to be published: of that reference, the manifest or index that it stands for, and the
// manifest of the platform that was asked for.
type image struct {
	Place registry.Place `cbor:"place"`
	Ref   string         `cbor:"ref"`
	Top   registry.Item  `cbor:"top"`
	Image digest.Digest  `cbor:"image"`
	Size  int64          `cbor:"size"`
}

// publishes are those that this node has asked for lately.
type publishes struct {
	at      *lru.Cache[string, time.Time]
	storing sync.Mutex // held while one is stored
}

// asked has the image of a blob published that a client has read: once in a while, by a member that may.
func (d *Door) asked(p registry.Place, it registry.Item) {
	of, ok := d.known.Item(p, it.Of)
	if !ok || it.Of == "" || p.Registry == "" {
		return
	}
	top, ok := d.topOf(p, of)
	if !ok {
		return
	}
	q := image{Place: p, Ref: of.Ref, Top: top, Image: of.Digest, Size: of.Size}
	key := p.Prefix() + " " + q.Ref + " " + string(q.Top.Digest) + " " + string(q.Image)
	if at, ok := d.publishes.at.Get(key); ok && d.cfg.Now().Sub(at) < publishAgain || d.running.Err() != nil {
		return
	}
	d.publishes.at.Add(key, d.cfg.Now())
	d.work.Add(1)
	go func() {
		defer d.work.Done()
		wait := settle
		for range publishTries {
			select {
			case <-time.After(wait):
			case <-d.running.Done():
				return
			}
			if err := d.askPublish(d.running, q); err == nil || errors.Is(err, content.ErrForbidden) {
				return
			}
			wait *= 4
		}
	}()
}

// topOf is what the reference stands for that an image was asked for as.
func (d *Door) topOf(p registry.Place, of registry.Item) (registry.Item, bool) {
	if registry.IsDigest(of.Ref) {
		return d.known.Item(p, digest.Digest(of.Ref))
	}
	if t, ok := d.known.Tag(p, of.Ref); ok {
		return d.known.Item(p, t.Item.Digest)
	}
	return registry.Item{}, false
}

// askPublish asks members to publish an image, those that rendezvous ranks first for its name first.
func (d *Door) askPublish(ctx context.Context, q image) error {
	failed := fmt.Errorf("%w: no member of the farm may publish images", content.ErrForbidden)
	for _, id := range d.ranked(q.Place.Prefix() + ":" + q.Ref) {
		err := error(nil)
		if id == d.cfg.Self {
			err = d.publish(ctx, q)
		} else {
			err = d.callPublish(ctx, id, q)
		}
		if err == nil || !errors.Is(err, content.ErrForbidden) && !errors.Is(err, content.ErrUnavailable) {
			return err
		}
		if !errors.Is(err, content.ErrForbidden) {
			failed = err
		}
	}
	return failed
}

func (d *Door) callPublish(ctx context.Context, id peer.ID, q image) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout+registry.HeadTimeout)
	defer cancel()
	_, err := ask[image, struct{}](ctx, d, id, publishMethod, q)
	return err
}

// publish begins to publish an image, if this node may.
func (d *Door) publish(ctx context.Context, q image) error {
	if !d.cfg.MayPublish {
		return fmt.Errorf("publish %s: %w: this node's role does not allow it", q.Place, content.ErrForbidden)
	}
	name, err := q.Place.Name(q.Ref)
	for _, err := range []error{err, q.Place.Check(), registry.CheckDigest(q.Top.Digest), registry.CheckDigest(q.Image)} {
		if err != nil {
			return err
		}
	}
	if t, err := d.tree(ctx, q.Place, q.Ref); err == nil && t.top.Digest == q.Top.Digest {
		if _, ok := t.files[q.Image]; ok {
			return nil
		}
	}
	if err := d.confirm(ctx, q); err != nil {
		return err
	}
	_, err = d.cfg.Operations.StartQueued(publishKind, name, func(ctx context.Context, op *operations.Operation) error {
		return d.store(ctx, op, name, q)
	})
	return err
}

// store brings in what an image lacks here, and publishes it as a tree.
func (d *Door) store(ctx context.Context, op *operations.Operation, name string, q image) error {
	d.publishes.storing.Lock() // each takes the disk and the line
	defer d.publishes.storing.Unlock()
	stage, err := d.blobs.stage()
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	if err := d.fill(ctx, stage, q); err != nil {
		return fmt.Errorf("publish %q: %w", name, err)
	}
	body, _, err := d.cfg.Library.Stow(ctx, op, images.ToStow{Dir: stage, Scope: content.Mesh()})
	if err == nil {
		body.Source = name
		err = d.cfg.Library.PublishTree(ctx, name, body)
	}
	if err == nil {
		op.Update(func(v *operations.View) { v.Total = v.Done })
		d.cfg.Log.Info("an image was published", "name", name, "digest", q.Top.Digest)
	}
	return err
}

// confirm asks the registry, without a credential, whether the reference stands for that: this node takes nobody's word
// for what it signs. What not everybody may read stays in the nodes' own files.
func (d *Door) confirm(ctx context.Context, q image) error {
	u := d.upstream(q.Place)
	if u == nil {
		return fmt.Errorf("publish %s: %w: this node asks no registry for it", q.Place, content.ErrForbidden)
	}
	it, err := u.Head(ctx, q.Place, true, q.Ref, "")
	if _, refused := errors.AsType[*registry.Refusal](err); refused {
		return fmt.Errorf("publish %s: %w: not everybody may read it", q.Place, content.ErrForbidden)
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w: %w", q.Place, content.ErrUnavailable, err)
	}
	if it.Digest != q.Top.Digest {
		return fmt.Errorf("publish %s: %s stands for another image by now: %w", q.Place, q.Ref, content.Stale)
	}
	d.known.Proved(q.Place, "")
	return nil
}

// fill makes an OCI layout in a folder: of the image, and of the platforms that the tree had before.
func (d *Door) fill(ctx context.Context, dir string, q image) error {
	blobs := filepath.Join(dir, blobsDir, string(digest.SHA256))
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	top, err := d.put(ctx, blobs, q.Place, d.as(q, q.Top.Digest, q.Top.Size, true))
	if err != nil {
		return err
	}
	m, err := registry.ParseManifest(top)
	if err != nil {
		return err
	}
	if q.Image != q.Top.Digest && !m.Names(q.Image) {
		return fmt.Errorf("%w: %s is not in %s", content.ErrInvalid, q.Image, q.Top.Digest)
	}
	parts := []registry.Manifest{m}
	if m.IsIndex() {
		parts = nil
		old, _ := d.tree(ctx, q.Place, q.Ref)
		for _, one := range m.Manifests {
			had := old != nil && old.top.Digest == q.Top.Digest
			if had {
				_, had = old.files[one.Digest]
			}
			if one.Digest != q.Image && !had {
				continue
			}
			b, err := d.put(ctx, blobs, q.Place, d.as(q, one.Digest, one.Size, true))
			if err != nil {
				return err
			}
			part, err := registry.ParseManifest(b)
			if err != nil {
				return err
			}
			parts = append(parts, part)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchesMax)
	for _, part := range parts {
		for _, one := range part.Named() {
			group.Go(func() error {
				_, err := d.put(ctx, blobs, q.Place, d.as(q, one.Digest, one.Size, part.IsIndex()))
				return err
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return describe(dir, everybody, ocispec.Descriptor{MediaType: m.Media(), Digest: q.Top.Digest, Size: q.Top.Size, Annotations: map[string]string{ocispec.AnnotationRefName: q.Ref}})
}

func (d *Door) as(q image, id digest.Digest, size int64, manifest bool) registry.Item {
	return registry.Item{Digest: id, Size: size, Manifest: manifest, Ref: q.Ref}
}

// put brings in a blob and has it in a folder too; it returns it if it is a manifest.
func (d *Door) put(ctx context.Context, dir string, p registry.Place, it registry.Item) ([]byte, error) {
	if it.Manifest && it.Size > registry.ManifestMax {
		return nil, fmt.Errorf("manifest %s: %w: it has %d bytes", it.Digest, content.ErrInvalid, it.Size)
	}
	x, err := d.bring(ctx, p, it, "")
	if err != nil {
		return nil, err
	}
	defer x.close()
	if _, err := x.await(ctx, it.Size, it.Size); err != nil {
		return nil, err
	}
	if err := os.Link(x.path, filepath.Join(dir, it.Digest.Encoded())); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if it.Manifest {
		return x.bytes(ctx)
	}
	return nil, nil
}

// describe writes what a layout has beside its blobs.
func describe(dir string, open access, top ocispec.Descriptor) error {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Annotations: map[string]string{accessNote: string(open)}, Manifests: []ocispec.Descriptor{top}}
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, indexFile), b, 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, layoutFile), layout(), 0o644)
	}
	return err
}
