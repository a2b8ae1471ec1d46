package oci

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strings"

	"cuelabs.dev/go/oci/ociregistry"
	"cuelabs.dev/go/oci/ociregistry/ociref"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
)

// listStep is how many names are listed at once, and ownMax bounds the trees of a repository that are searched.
const listStep, ownMax = 256, 512

// resolveOwn says what a tag or digest of the mesh's own repositories stands for: in the trees that there are now, and
// in what was pushed here.
func (d *Door) resolveOwn(ctx context.Context, p registry.Place, ref string, manifest bool) (it registry.Item, err error) {
	absent := fmt.Errorf("%.128s of %s: %w", ref, p, content.ErrNotFound)
	if err := p.Check(); err != nil {
		return it, ociregistry.ErrNameInvalid
	}
	if !registry.IsDigest(ref) {
		t, err := d.tree(ctx, p, ref)
		if err != nil {
			return it, err
		}
		if t.access == some {
			return it, absent
		}
		return d.within(ctx, p, ref, t.top.Digest)
	}
	id := digest.Digest(ref)
	if err := registry.CheckDigest(id); err != nil {
		return it, err
	}
	if it, ok := d.isKept(p, id); ok {
		return it, nil
	}
	hint, _ := d.known.Item(p, id)
	if it, err = d.within(ctx, p, hint.Ref, id); err != nil {
		it, err = d.within(ctx, p, ref, id)
	}
	n := 0
	for other := range d.refs(ctx, p) {
		if n++; err == nil || n > ownMax {
			break
		}
		it, err = d.within(ctx, p, other, id)
	}
	if err != nil {
		return it, absent
	}
	if manifest && it.Media == "" {
		return d.studied(ctx, p, it)
	}
	return it, nil
}

// within looks for a blob in one tree.
func (d *Door) within(ctx context.Context, p registry.Place, ref string, id digest.Digest) (it registry.Item, err error) {
	t, err := d.tree(ctx, p, ref)
	if err != nil {
		return it, err
	}
	f, ok := t.files[id]
	if !ok || t.access == some {
		return it, content.ErrNotFound
	}
	it = registry.Item{Digest: id, Size: f.Size, Ref: ref}
	if old, ok := d.known.Item(p, id); ok {
		it.Manifest, it.Media = old.Manifest, old.Media
	}
	if id == t.top.Digest {
		it.Manifest, it.Media = true, t.top.Media
	}
	d.known.Replace(p, it) // where it is found first the next time
	return it, nil
}

// studied reads which type a manifest is of.
func (d *Door) studied(ctx context.Context, p registry.Place, it registry.Item) (registry.Item, error) {
	if it.Size > registry.ManifestMax {
		return it, content.ErrNotFound
	}
	x, err := d.bring(ctx, p, it, "")
	if err != nil {
		return it, err
	}
	defer x.close()
	return d.study(ctx, p, it, x)
}

// refs are the tags and digests that images of a repository have in the mesh.
func (d *Door) refs(ctx context.Context, p registry.Place) iter.Seq[string] {
	return func(yield func(string) bool) {
		begin := p.Prefix() + ":"
		for name := range d.names(ctx, begin) {
			ref, ours := strings.CutPrefix(name, begin)
			if id, ok := cutDigest(ref); ok {
				ref = id
			}
			if !ours || !yield(ref) {
				return
			}
		}
	}
}

// names are those of trees behind one.
func (d *Door) names(ctx context.Context, after string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for more := true; more; {
			page, has, err := d.cfg.Library.List(ctx, content.RootTree, after, listStep)
			if more = has && err == nil && len(page) > 0; err != nil {
				d.cfg.Log.Warn("the images of the mesh are not listed to their end", "err", err)
			}
			for _, one := range page {
				if after = one.Name; !yield(one.Name) {
					return
				}
			}
		}
	}
}

// tags lists those of a repository.
func (d *Door) tags(ctx context.Context, repo, after string) iter.Seq2[string, error] {
	p, _ := from(ctx, repo)
	return func(yield func(string, error) bool) {
		found := false
		for ref := range d.refs(ctx, p) {
			found = true
			if !registry.IsDigest(ref) && ociref.IsValidTag(ref) && ref > after && !yield(ref, nil) {
				return
			}
		}
		if !found {
			yield("", ociregistry.ErrNameUnknown)
		}
	}
}

// repositories lists those that have images in the mesh.
func (d *Door) repositories(ctx context.Context, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if last := after; last != "" {
			after += ":~" // all of its tags come before
		}
		last := ""
		for name := range d.names(ctx, after) {
			i := strings.LastIndex(name, ":")
			if i < 0 || name[:i] == last || !ociref.IsValidRepository(name[:i]) {
				continue
			}
			if last = name[:i]; !yield(last, nil) {
				return
			}
		}
	}
}

// referrers lists the manifests of a repository that are about another.
func (d *Door) referrers(ctx context.Context, repo string, id ociregistry.Digest, kind string) iter.Seq2[ociregistry.Descriptor, error] {
	p, _ := from(ctx, repo)
	return func(yield func(ociregistry.Descriptor, error) bool) {
		seen := map[digest.Digest]bool{}
		for ref := range d.refs(ctx, p) {
			t, err := d.tree(ctx, p, ref)
			if err != nil || t.access == some || t.note.Annotations[subjectNote] != string(id) || seen[t.top.Digest] || kind != "" && kind != t.note.ArtifactType {
				continue
			}
			seen[t.top.Digest] = true
			one := t.note
			one.Annotations = maps.Clone(one.Annotations)
			delete(one.Annotations, subjectNote)
			delete(one.Annotations, ocispec.AnnotationRefName)
			if !yield(one, nil) {
				return
			}
		}
	}
}

// deleteTag takes a tag back; what it stood for stays under its other tags and its digest.
func (d *Door) deleteTag(ctx context.Context, repo, tag string) error {
	p := registry.Place{Repo: repo}
	name, err := p.Name(tag)
	if err == nil {
		_, err = d.tree(ctx, p, tag)
	}
	if err != nil {
		return ociregistry.ErrManifestUnknown
	}
	_, err = d.cfg.Library.Remove(ctx, name)
	return err
}

// deleteManifest takes back all that stands for a manifest. One that is part of an index goes with that alone.
func (d *Door) deleteManifest(ctx context.Context, repo string, id ociregistry.Digest) error {
	p, stand := registry.Place{Repo: repo}, []string{}
	for ref := range d.refs(ctx, p) {
		if t, err := d.tree(ctx, p, ref); err == nil && t.top.Digest == id {
			stand = append(stand, ref)
		}
	}
	if len(stand) == 0 {
		if _, err := d.resolveOwn(ctx, p, string(id), false); err == nil {
			return ociregistry.NewHTTPError(errors.New("it is part of an image, and goes with that"), 405, nil, nil)
		}
		return ociregistry.ErrManifestUnknown
	}
	var errs []error
	for _, ref := range stand {
		name, err := p.Name(ref)
		if err == nil {
			_, err = d.cfg.Library.Remove(ctx, name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// uploadID is that of an upload as its URL has it.
func uploadID(text string) string {
	b, _ := base64.RawURLEncoding.DecodeString(text) // what is none is the ID of no upload
	return string(b)
}

// written returns no writer with an error.
func written(w *uploading, err error) (ociregistry.BlobWriter, error) {
	if err != nil {
		return nil, err
	}
	return w, nil
}
