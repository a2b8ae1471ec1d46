package oci

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cuelabs.dev/go/oci/ociregistry"
	"github.com/opencontainers/go-digest"

	"github.com/grangemesh/grange/origin/content"
)

// resolve says what a tag or digest stands for to who may read it: as the registry says, or, while that
// is away, as is known here, in the farm or in the mesh.
func (d *Door) resolve(ctx context.Context, repo, ref string, manifest bool) (item, error) {
	p, credential := from(ctx, repo)
	if err := p.check(); err != nil {
		return item{}, ociregistry.ErrNameInvalid
	}
	if p.Registry == "" {
		return d.resolveOwn(ctx, p, ref, manifest)
	}
	if isDigest(ref) {
		if err := checkDigest(digest.Digest(ref)); err != nil {
			return item{}, err
		}
		if it, ok := d.known.item(p, digest.Digest(ref)); ok && d.known.mayRead(p, credential, proofFresh) {
			return it, nil
		}
	}
	it, err := d.ask(ctx, p, manifest, ref, credential)
	if err == nil {
		it.Ref = ref
		return d.known.enter(p, it), nil
	}
	if refused, ok := errors.AsType[*refusal](err); ok {
		d.known.refused(p, credential, refused.challenge)
		return item{}, err
	}
	it, open, found := d.remembered(ctx, p, ref, isAway(err))
	if !found {
		return item{}, err
	}
	switch {
	case open == brought || open == everybody && isAway(err):
	case isAway(err) && d.known.mayRead(p, credential, proofKept):
	case isAway(err) && d.known.challenge(p) != "":
		return item{}, &refusal{d.known.challenge(p)}
	default:
		return item{}, err
	}
	return it, nil
}

// ask asks the registry, and notes what it says.
func (d *Door) ask(ctx context.Context, p place, manifest bool, ref, credential string) (item, error) {
	u := d.upstream(p)
	if u == nil {
		return item{}, fmt.Errorf("%s of %s: %w: this node asks no registry for it", ref, p, content.ErrNotFound)
	}
	it, err := u.head(ctx, p, manifest, ref, credential)
	if err != nil {
		return it, err
	}
	d.known.proved(p, credential)
	if credential != "" && d.known.challenge(p) == "" && !d.known.mayRead(p, "", proofKept) { // a client that shows one to everybody
		if _, err := u.head(ctx, p, manifest, ref, ""); err == nil {
			d.known.proved(p, "")
		}
	}
	if manifest && !isDigest(ref) {
		d.known.stands(p, ref, tag{it, d.cfg.Now(), d.known.mayRead(p, "", proofFresh)})
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
func (d *Door) remembered(ctx context.Context, p place, ref string, away bool) (item, access, bool) {
	if isDigest(ref) {
		it, ok := d.known.item(p, digest.Digest(ref))
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
		return d.known.enter(p, it), t.access, true
	}
	t, ok := d.known.tag(p, ref)
	if !ok && !away { // what the registry says counts, and a question to all for each wrong name is dear
		return item{}, some, false
	}
	if !ok {
		if t, ok = d.askTag(ctx, p, ref); !ok {
			return item{}, some, false
		}
		d.known.stands(p, ref, t)
	}
	t.Item.Ref = ref
	open := some
	if t.Open && d.cfg.Now().Sub(t.At) < proofKept {
		open = everybody
	}
	return d.known.enter(p, t.Item), open, true
}

// openTo says who may read a blob without the registry.
func (d *Door) openTo(ctx context.Context, p place, it item) access {
	if d.known.mayRead(p, "", proofKept) {
		return everybody
	}
	if t, ok := d.known.tag(p, it.Ref); ok && t.Open && d.cfg.Now().Sub(t.At) < proofKept {
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
	if manifest && it.Size > manifestMax { // who names a layer so would have all of it in memory
		return nil, fmt.Errorf("manifest %s of %s: %w: it has %d bytes, and may have %d", id, repo, content.ErrInvalid, it.Size, manifestMax)
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
func (d *Door) study(ctx context.Context, p place, it item, x *blob) (item, error) {
	b, err := x.bytes(ctx)
	if err != nil {
		return it, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return it, err
	}
	it.Manifest = true
	if it.Media == "" || it.Media == octets || it.Media == "application/json" {
		it.Media = m.media()
	}
	d.known.learn(p, it, m)
	return it, nil
}

// served is a blob, or a part of it, for the server.
type served struct {
	*reader
	item item
}

// Descriptor implements ociregistry.BlobReader.
func (s served) Descriptor() ociregistry.Descriptor {
	out, _ := descriptor(s.item, nil)
	return out
}
