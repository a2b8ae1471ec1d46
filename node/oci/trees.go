package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/oci/registry"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
)

const (
	// treesMax bounds the trees that are kept open: each has the table of its chunks in memory.
	treesMax = 128
	// treeTimeout bounds how long a tree is looked for where the registry may have the same, and seekMax
	// the trees of a repository that are searched for a blob.
	treeTimeout, seekMax = 4 * time.Second, 32
	// treeStep is read of a tree at once, treeSteps at a time: as much as a link far away has on its way.
	treeStep, treeSteps = 1 << 20, 8
	// accessNote is the annotation of a tree's index that says who may read the image.
	accessNote = "io.grange.access"
	// indexFile, layoutFile and blobsDir are what an OCI layout has.
	indexFile, layoutFile, blobsDir = ocispec.ImageIndexFile, ocispec.ImageLayoutFile, ocispec.ImageBlobsDir
)

// opened is the tree of an image.
type opened struct {
	root   content.Root
	tree   *tree.Tree
	files  map[digest.Digest]tree.File
	top    registry.Item // the manifest or index that it stands for
	access access
	note   ocispec.Descriptor // of the top, as the index has it
}

// tree opens that of an image, by a tag or digest of it.
func (d *Door) tree(ctx context.Context, p registry.Place, ref string) (*opened, error) {
	name, err := p.Name(ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, treeTimeout)
	defer cancel()
	root, err := d.cfg.Library.TreeRoot(ctx, name)
	if err != nil {
		return nil, err
	}
	if t, ok := d.trees.Get(name); ok && t.root == root.Head.Root {
		return t, nil
	}
	files, head, err := d.cfg.Library.OpenTree(ctx, name)
	if err != nil {
		return nil, err
	}
	t := &opened{root: head.Root, tree: files, files: map[digest.Digest]tree.File{}}
	if err := t.read(ctx); err != nil {
		return nil, fmt.Errorf("tree %q: %w", name, err)
	}
	d.trees.Add(name, t)
	return t, nil
}

// read lists what is in the layout.
func (t *opened) read(ctx context.Context) error {
	var index registry.Manifest
	folder, err := t.tree.List(ctx, t.tree.Top())
	if err != nil {
		return err
	}
	for _, f := range folder {
		switch {
		case string(f.Name) == indexFile && f.Size <= registry.ManifestMax:
			b := make([]byte, f.Size)
			if _, err := t.tree.ReadAt(ctx, f, b, 0); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if index, err = registry.ParseManifest(b); err != nil {
				return err
			}
		case string(f.Name) == blobsDir:
			if err := t.list(ctx, f); err != nil {
				return err
			}
		}
	}
	if len(index.Manifests) == 0 {
		return fmt.Errorf("%w: its %s names no image", content.ErrInvalid, indexFile)
	}
	m := index.Manifests[0]
	t.note = m
	t.top = registry.Item{Digest: m.Digest, Size: m.Size, Media: m.MediaType, Manifest: true}
	if t.access = access(index.Notes[accessNote]); t.access != everybody && t.access != some {
		t.access = brought // an operator has brought it in
	}
	return nil
}

func (t *opened) list(ctx context.Context, blobs tree.File) error {
	kinds, err := t.tree.List(ctx, blobs)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if string(kind.Name) != string(digest.SHA256) {
			continue
		}
		files, err := t.tree.List(ctx, kind)
		if err != nil {
			return err
		}
		for _, f := range files {
			if d := digest.NewDigestFromEncoded(digest.SHA256, string(f.Name)); registry.CheckDigest(d) == nil && f.Is(tree.Regular) && len(f.Same) == 0 {
				t.files[d] = f
			}
		}
	}
	return nil
}

// fromTree appends to a blob what the tree of its image has.
func (d *Door) fromTree(ctx context.Context, p registry.Place, it registry.Item, x arrival) error {
	if it.Ref == "" {
		return content.ErrNotFound
	}
	t, err := d.tree(ctx, p, it.Ref)
	if err != nil {
		return err
	}
	f, ok := t.files[it.Digest]
	if !ok || f.Size != it.Size {
		return content.ErrNotFound
	}
	for x.length() < x.size {
		if err := t.append(ctx, f, x); err != nil {
			return err
		}
	}
	return nil
}

// append reads some steps of a file at once.
func (t *opened) append(ctx context.Context, f tree.File, x arrival) error {
	from := x.length()
	b := make([]byte, min(treeStep*treeSteps, x.size-from))
	group, ctx := errgroup.WithContext(ctx)
	for off := 0; off < len(b); off += treeStep {
		part := b[off:min(off+treeStep, len(b))]
		group.Go(func() error {
			n, err := t.tree.ReadAt(ctx, f, part, from+int64(off))
			if n == len(part) && errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		})
	}
	err := group.Wait()
	if err == nil {
		_, err = x.Write(b)
	}
	return err
}

// seek looks for a blob in the trees of a repository, and notes what those have.
func (d *Door) seek(ctx context.Context, p registry.Place, id digest.Digest) (registry.Item, bool) {
	begin := p.Prefix() + ":"
	page, _, _ := d.cfg.Library.List(ctx, content.RootTree, begin, seekMax)
	for _, image := range page {
		ref, ours := strings.CutPrefix(image.Name, begin)
		if !ours {
			break
		}
		if hex, ok := cutDigest(ref); ok {
			ref = hex
		}
		t, err := d.tree(ctx, p, ref)
		if err != nil {
			continue
		}
		for one, f := range t.files {
			it := registry.Item{Digest: one, Size: f.Size, Ref: ref, Manifest: one == t.top.Digest}
			if it.Manifest {
				it.Media = t.top.Media
			}
			d.known.Enter(p, it)
		}
		if it, ok := d.known.Item(p, id); ok {
			return it, true
		}
	}
	return registry.Item{}, false
}

// cutDigest returns the digest that a name's tag is, where it is one: see place.name.
func cutDigest(tag string) (string, bool) {
	d := digest.Digest("sha256:" + tag[min(len(tag), len("sha256-")):])
	return string(d), len(tag) > len("sha256-") && tag[:len("sha256-")] == "sha256-" && registry.CheckDigest(d) == nil
}

// layout is what an OCI layout says of itself.
func layout() []byte {
	b, _ := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	return b
}
