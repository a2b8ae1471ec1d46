package oci

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
)

// resolve says what a tag or digest stands for to who may read it: as the registry says, or, while that
// is away, as is known here, in the farm or in the mesh.
func (d *Door) resolve(ctx context.Context, repo, ref string, manifest bool) (registry.Item, error) {
	p, credential := from(ctx, repo)
	if err := p.Check(); err != nil {
		return registry.Item{}, ociregistry.ErrNameInvalid
	}
	if p.Registry == "" {
		return d.resolveOwn(ctx, p, ref, manifest)
	}
	if registry.IsDigest(ref) {
		if err := registry.CheckDigest(digest.Digest(ref)); err != nil {
			return registry.Item{}, err
		}
		if it, ok := d.known.Item(p, digest.Digest(ref)); ok && d.known.MayRead(p, credential, registry.ProofFresh) {
			return it, nil
		}
	}
	it, err := d.ask(ctx, p, manifest, ref, credential)
	if err == nil {
		it.Ref = ref
		return d.known.Enter(p, it), nil
	}
	if refused, ok := errors.AsType[*registry.Refusal](err); ok {
		d.known.Refused(p, credential, refused.Challenge)
		return registry.Item{}, err
	}
	it, open, found := d.remembered(ctx, p, ref, registry.IsAway(err))
	if !found {
		return registry.Item{}, err
	}
	switch {
	case open == brought || open == everybody && registry.IsAway(err):
	case registry.IsAway(err) && d.known.MayRead(p, credential, registry.ProofKept):
	case registry.IsAway(err) && d.known.Challenge(p) != "":
		return registry.Item{}, &registry.Refusal{Challenge: d.known.Challenge(p)}
	default:
		return registry.Item{}, err
	}
	return it, nil
}

// ask asks the registry, and notes what it says.
func (d *Door) ask(ctx context.Context, p registry.Place, manifest bool, ref, credential string) (registry.Item, error) {
	u := d.upstream(p)
	if u == nil {
		return registry.Item{}, fmt.Errorf("%s of %s: %w: this node asks no registry for it", ref, p, content.ErrNotFound)
	}
	it, err := u.Head(ctx, p, manifest, ref, credential)
	if err != nil {
		return it, err
	}
	d.known.Proved(p, credential)
	if credential != "" && d.known.Challenge(p) == "" && !d.known.MayRead(p, "", registry.ProofKept) { // a client that shows one to everybody
		if _, err := u.Head(ctx, p, manifest, ref, ""); err == nil {
			d.known.Proved(p, "")
		}
	}
	if manifest && !registry.IsDigest(ref) {
		d.known.Stands(p, ref, registry.Tag{Item: it, At: d.cfg.Now(), Open: d.known.MayRead(p, "", registry.ProofFresh)})
	}
	return it, nil
}

// access is who may read what is in the mesh, as its index says.
type access string

const (
	everybody access = "everybody" // the registry let it be read without a credential
	some      access = "some"      // it wanted one
	brought   access = "brought"   // an operator has brought it into the mesh
)

// remembered looks for what stands under a reference without the registry: here, in the trees of the
// mesh, and, while that is away, with the members of the farm.
func (d *Door) remembered(ctx context.Context, p registry.Place, ref string, away bool) (registry.Item, access, bool) {
	if registry.IsDigest(ref) {
		it, ok := d.known.Item(p, digest.Digest(ref))
		if !ok {
			it, ok = d.seek(ctx, p, digest.Digest(ref))
		}
		if !ok {
			return it, some, false
		}
		return it, d.openTo(ctx, p, it), true
	}
	if t, err := d.tree(ctx, p, ref); err == nil {
		it := t.top
		it.Ref = ref
		return d.known.Enter(p, it), t.access, true
	}
	t, ok := d.known.Tag(p, ref)
	if !ok && !away { // what the registry says counts, and a question to all for each wrong name is dear
		return registry.Item{}, some, false
	}
	if !ok {
		if t, ok = d.askTag(ctx, p, ref); !ok {
			return registry.Item{}, some, false
		}
		d.known.Stands(p, ref, t)
	}
	t.Item.Ref = ref
	open := some
	if t.Open && d.cfg.Now().Sub(t.At) < registry.ProofKept {
		open = everybody
	}
	return d.known.Enter(p, t.Item), open, true
}

// openTo says who may read a blob without the registry.
func (d *Door) openTo(ctx context.Context, p registry.Place, it registry.Item) access {
	if d.known.MayRead(p, "", registry.ProofKept) {
		return everybody
	}
	if t, ok := d.known.Tag(p, it.Ref); ok && t.Open && d.cfg.Now().Sub(t.At) < registry.ProofKept {
		return everybody
	}
	if t, err := d.tree(ctx, p, it.Ref); err == nil {
		return t.access
	}
	return some
}

// wanted is a part of a blob, to its end where to is negative.
type wanted struct{ from, to int64 }

// serveWait bounds how long a client waits for a part from the middle, all of which has to come first.
const serveWait = 30 * time.Minute

// open returns what reads a blob, or a part of it, once it begins to come.
func (d *Door) open(ctx context.Context, repo string, id ociregistry.Digest, manifest bool, part wanted) (ociregistry.BlobReader, error) {
	it, err := d.resolve(ctx, repo, string(id), manifest)
	if err != nil {
		return nil, err
	}
	if manifest && it.Size > registry.ManifestMax { // who names a layer so would have all of it in memory
		return nil, fmt.Errorf("manifest %s of %s: %w: it has %d bytes, and may have %d", id, repo, content.ErrInvalid, it.Size, registry.ManifestMax)
	}
	p, credential := from(ctx, repo)
	x, err := d.bring(ctx, p, it, credential)
	if err != nil {
		return nil, err
	}
	end, hold := it.Size, int64(tailSize)
	if part.to >= 0 {
		end = min(part.to, end)
	}
	if part.from > 0 || end < it.Size || manifest || it.Manifest {
		hold = it.Size // who has a part, or a manifest, checks nothing
		wait, cancel := context.WithTimeout(ctx, serveWait)
		_, err = x.await(wait, it.Size, it.Size)
		cancel()
	} else { // so that what can't come is a 404, and no answer that breaks
		_, err = x.await(ctx, 0, min(hold, it.Size))
	}
	if err == nil && manifest {
		it, err = d.study(ctx, p, it, x)
	}
	if err != nil {
		x.close()
		return nil, err
	}
	r, err := x.read(ctx, min(part.from, it.Size), end, hold)
	if err != nil {
		x.close()
		return nil, err
	}
	if !it.Manifest {
		r.done = func() { d.asked(p, it) }
	}
	return served{r, it}, nil
}

// study notes what a manifest names, and which type it is of.
func (d *Door) study(ctx context.Context, p registry.Place, it registry.Item, x *blob) (registry.Item, error) {
	b, err := x.bytes(ctx)
	if err != nil {
		return it, err
	}
	m, err := registry.ParseManifest(b)
	if err != nil {
		return it, err
	}
	it.Manifest = true
	if it.Media == "" || it.Media == registry.Octets || it.Media == "application/json" {
		it.Media = m.Media()
	}
	d.known.Learn(p, it, m)
	return it, nil
}

// served is a blob, or a part of it, for the server.
type served struct {
	*reader
	item registry.Item
}

// Descriptor implements ociregistry.BlobReader.
func (s served) Descriptor() ociregistry.Descriptor {
	out, _ := descriptor(s.item, nil)
	return out
}
