package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
)

// ImageInfo describes an image or tag.
type ImageInfo struct {
	Name    string
	Kind    content.Kind
	Target  string
	Root    content.CID
	Size    int64
	Stored  uint64
	Chunks  uint64
	Scope   content.Scope
	Version uint64
	Signed  time.Time
	Source  string
	Pinned  bool
}

// ImportRequest says what to publish.
type ImportRequest struct {
	Source  string
	Format  string
	Scope   content.Scope
	Replace bool
	Size    int64
}

// Images publishes images and handles those that are published.
type Images struct{ n *Node }

func (im *Images) info(k known) (ImageInfo, error) {
	body, err := catalog.DecodeImage(im.n.codec, k.Body)
	if err != nil {
		return ImageInfo{}, err
	}
	root, err := body.Head.Root.Encode(im.n.codec)
	if err != nil {
		return ImageInfo{}, err
	}
	return ImageInfo{
		Name: k.Name, Kind: k.Kind, Target: body.Target, Root: root.CID(), Size: body.Head.Root.Size, Stored: body.Stored, Chunks: body.Chunks,
		Scope: body.Head.Scope, Version: k.Version, Signed: k.SignedAt, Source: body.Source, Pinned: slices.Contains(im.n.cache.Pinned(), k.Name),
	}, nil
}

// List returns images and tags by name: those of the origin, or while it is away
// those that this node has met.
func (im *Images) List(ctx context.Context) ([]ImageInfo, error) {
	if c := im.n.origin.records(); c != nil {
		for r, err := range c.List(ctx, content.KindImage) {
			if err == nil {
				err = im.n.Names.Confirmed(r)
			}
			if err != nil {
				im.n.origin.lost(err)
				im.n.cfg.Log.Warn("a record can't be listed", "name", r.Name, "err", err)
			}
		}
	}
	var out []ImageInfo
	for _, k := range im.n.Names.Of(content.KindImage) {
		if i, err := im.info(k); err == nil {
			out = append(out, i)
		}
	}
	return out, nil
}

// Get returns one image or tag.
func (im *Images) Get(ctx context.Context, name string) (ImageInfo, error) {
	if err := content.CheckName(name); err != nil {
		return ImageInfo{}, err
	}
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, false)
	if err != nil {
		return ImageInfo{}, err
	}
	return im.info(k)
}

// Import publishes an image under a name, in the background. What can be known at
// once is refused at once.
func (im *Images) Import(ctx context.Context, name string, req ImportRequest) (OperationView, error) {
	if err := im.mayImport(name, &req); err != nil {
		return OperationView{}, err
	}
	if _, _, err := im.previous(ctx, name, req.Replace); err != nil {
		return OperationView{}, err
	}
	return im.n.Operations.Start("import", name, func(ctx context.Context, op *Operation) error {
		return im.publish(ctx, op, name, req)
	})
}

func (im *Images) mayImport(name string, req *ImportRequest) error {
	if err := content.CheckName(name); err != nil {
		return err
	}
	if req.Scope.IsZero() {
		req.Scope = content.Mesh()
	}
	if id := im.n.signer.Chain.Identity(); !id.MaySign(content.KindImage, "") || !id.MayRead(req.Scope) {
		return fmt.Errorf("import %q: %w: this node is a %s of farm %q; images of scope %s are published by a publisher or admin who may read them", name, content.ErrForbidden, id.Role, id.Farm, req.Scope)
	}
	if !filepath.IsAbs(req.Source) {
		return fmt.Errorf("import %q: source %q: %w: want an absolute path on the node's host", name, req.Source, content.ErrInvalid)
	}
	if _, err := os.Stat(req.Source); err != nil {
		return fmt.Errorf("import %q: source: %w: %w", name, content.ErrInvalid, err)
	}
	if _, err := im.n.origin.writable(); err != nil {
		return fmt.Errorf("import %q: %w", name, err)
	}
	return nil
}

// publish reads the source, stores what is new, and commits the record last: an
// import that is killed has published nothing, and leaves packs that the next one
// finds.
func (im *Images) publish(ctx context.Context, op *Operation, name string, req ImportRequest) error {
	old, base, err := im.previous(ctx, name, req.Replace)
	if err != nil {
		return err
	}
	note := func(text string) { op.Update(func(v *OperationView) { v.Note = text }) }
	temp := filepath.Join(im.n.cfg.Dir, "tmp")
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return err
	}
	opts := convert.Options{Path: req.Source, Format: convert.Format(req.Format), Temp: temp, Size: req.Size, Note: note}
	var lineage []content.CID
	if old != nil {
		opts.Previous = func(ctx context.Context, f *os.File) error { return im.exportTo(ctx, old.Head, f, nil) }
		if lineage, err = im.lineage(*old); err != nil {
			return err
		}
	}
	disk, err := convert.Open(ctx, opts)
	if err != nil {
		return fmt.Errorf("import %q: %w", name, err)
	}
	defer disk.Close()
	note("")
	head, stats, err := im.store(ctx, op, disk, req.Scope, lineage)
	if err != nil {
		return fmt.Errorf("import %q from %s: %w", name, req.Source, err)
	}
	body := catalog.Image{Head: head, Lineage: lineage, Source: filepath.Base(req.Source), Chunks: stats.Chunks, Stored: im.stored(head, stats)}
	if err := im.record(ctx, content.KindImage, name, body, base); err != nil {
		return err
	}
	im.hold(ctx, name)
	return nil
}

// hold lets others know at once that this node has what it has just published.
func (im *Images) hold(ctx context.Context, name string) {
	m, err := im.image(ctx, name)
	if err == nil {
		err = im.n.fetch.Hold(ctx, m.ID())
	}
	if err != nil {
		im.n.cfg.Log.Warn("a new image is not announced yet", "name", name, "err", err)
	}
}

// previous returns the image that the name stands for, and its record; nil when
// the name is free.
func (im *Images) previous(ctx context.Context, name string, replace bool) (*catalog.Image, *catalog.Record, error) {
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case !replace:
		return nil, nil, fmt.Errorf("import %q: %w; give --replace to publish a new version of it", name, content.ErrExists)
	case k.Kind != content.KindImage:
		return nil, nil, fmt.Errorf("import %q: %w: it is a tag; choose another name, or remove it first", name, content.ErrConflict)
	}
	body, err := catalog.DecodeImage(im.n.codec, k.Body)
	return &body, &k.Record, err
}

// lineage is the previous root and those before it.
func (im *Images) lineage(old catalog.Image) ([]content.CID, error) {
	root, err := old.Head.Root.Encode(im.n.codec)
	if err != nil {
		return nil, err
	}
	all := append([]content.CID{root.CID()}, old.Lineage...)
	return all[:min(len(all), content.LineageMax)], nil
}

// store builds the packs of a disk. Its chunks stay in this node's cache: the
// farm of the importer need not fetch what it has made.
func (im *Images) store(ctx context.Context, op *Operation, disk convert.Disk, scope content.Scope, lineage []content.CID) (pack.Head, pack.Stats, error) {
	store, err := im.n.origin.writable()
	if err != nil {
		return pack.Head{}, pack.Stats{}, err
	}
	scopes := []content.Scope{content.Public(), scope}
	if scope.Farm() != "" {
		scopes = append(scopes, content.Mesh())
	}
	slices.SortFunc(scopes, func(a, b content.Scope) int { return len(a.String()) - len(b.String()) })
	index, err := pack.LoadIndex(ctx, pack.IndexConfig{Bucket: store, Scopes: slices.Compact(scopes), Dir: filepath.Join(im.n.cfg.Dir, "index")})
	if err != nil {
		return pack.Head{}, pack.Stats{}, err
	}
	b, err := pack.NewBuilder(ctx, pack.BuilderConfig{
		Bucket: store, Scope: scope, Size: disk.Size(), Known: index, Lineage: lineage, Now: im.n.cfg.Now, Codec: im.n.codec, Log: im.n.cfg.Log,
		OnChunk: func(v content.Verified) { im.n.cache.Put(v) }, // without room the import goes on
		Progress: func(s pack.Stats) {
			op.Update(func(v *OperationView) { v.Bytes["new"], v.Bytes["sent"] = int64(s.NewRawBytes), int64(s.UploadedBytes) })
		},
	})
	if err != nil {
		return pack.Head{}, pack.Stats{}, err
	}
	err = convert.Chunks(ctx, disk, content.ChunkSizeDefault, b.Add, func(off int64) {
		op.Update(func(v *OperationView) { v.Done, v.Total = off, disk.Size() })
	})
	if err != nil {
		b.Abort()
		return pack.Head{}, pack.Stats{}, err
	}
	head, stats, err := b.Finish(ctx)
	if err != nil {
		return pack.Head{}, pack.Stats{}, err
	}
	return head, stats, im.complete(ctx, store, head)
}

// complete checks that every pack that the head refers to is there: one that was
// reused may have been collected meanwhile.
func (im *Images) complete(ctx context.Context, store bucket.Bucket, head pack.Head) error {
	m, err := pack.NewReader(store).ReadManifest(ctx, head)
	if err != nil {
		return err
	}
	missing, err := pack.MissingPacks(ctx, store, m)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%w: %d packs that it shares with older images are gone; import again", content.ErrConflict, len(missing))
	}
	return err
}

// stored is what the chunks of an image take at the origin.
func (im *Images) stored(head pack.Head, stats pack.Stats) uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), originTimeout)
	defer cancel()
	if b := im.n.origin.readable(); b != nil {
		if m, err := pack.NewReader(b).ReadManifest(ctx, head); err == nil {
			return m.Stored
		}
	}
	return stats.NewStoredBytes
}

// record commits an image or tag and makes it known here.
func (im *Images) record(ctx context.Context, kind content.Kind, name string, body catalog.Image, base *catalog.Record) error {
	b, err := body.Encode(im.n.codec)
	if err != nil {
		return err
	}
	_, err = im.n.commit(ctx, catalog.Change{Kind: kind, Name: name, Body: b, Base: base})
	return err
}

// Tag lets a tag stand for what the image is now.
func (im *Images) Tag(ctx context.Context, name, tag string) (ImageInfo, error) {
	if err := content.CheckName(tag); err != nil {
		return ImageInfo{}, err
	}
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return ImageInfo{}, err
	}
	body, err := catalog.DecodeImage(im.n.codec, k.Body)
	if err != nil {
		return ImageInfo{}, err
	}
	body.Target = name
	var base *catalog.Record
	switch old, err := im.n.Names.Lookup(ctx, content.KindImage, tag, true); {
	case err == nil && old.Kind != content.KindTag:
		return ImageInfo{}, fmt.Errorf("tag %q: %w: it is an image", tag, content.ErrConflict)
	case err == nil:
		base = &old.Record
	case !errors.Is(err, content.ErrNotFound):
		return ImageInfo{}, err
	}
	if err := im.record(ctx, content.KindTag, tag, body, base); err != nil {
		return ImageInfo{}, err
	}
	return im.Get(ctx, tag)
}

// Remove deletes a name; what it stood for stays readable for those who hold it,
// and is collected later. An absent name is success.
func (im *Images) Remove(ctx context.Context, name string) error {
	if err := content.CheckName(name); err != nil {
		return err
	}
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = im.n.commit(ctx, catalog.Change{Kind: k.Kind, Name: name, Base: &k.Record, Delete: true})
	return errors.Join(err, im.n.cache.Unpin(name))
}

// image opens what a name stands for.
func (im *Images) image(ctx context.Context, name string) (*fetch.Image, error) {
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return nil, err
	}
	return im.open(rootOf(im.n.codec, k))
}

func (im *Images) open(r fetch.Root) (*fetch.Image, error) {
	id, err := im.n.fetch.Learn(r)
	if err != nil {
		return nil, err
	}
	return im.n.fetch.Open(id)
}

// Warm fetches all of an image into the cache, in the background.
func (im *Images) Warm(name string) (OperationView, error) {
	if err := content.CheckName(name); err != nil {
		return OperationView{}, err
	}
	return im.n.Operations.Start("warm", name, func(ctx context.Context, op *Operation) error {
		m, err := im.image(ctx, name)
		if err != nil {
			return err
		}
		i, err := im.Get(ctx, name)
		if err != nil {
			return err
		}
		op.Update(func(v *OperationView) { v.Total = int64(i.Chunks) * int64(m.Root().ChunkSize) })
		return m.Warm(ctx, func(s fetch.Source, n int) {
			op.Update(func(v *OperationView) { v.Done += int64(n); v.Bytes[s.String()] += int64(n) })
		})
	})
}

// Pin keeps an image's chunks in the cache, those too that come later.
func (im *Images) Pin(ctx context.Context, name string) error {
	m, err := im.image(ctx, name)
	if err != nil {
		return err
	}
	var first error
	err = im.n.cache.Pin(name, func(yield func(content.CID) bool) {
		for id, err := range m.CIDs(ctx) {
			if err != nil || !yield(id) {
				first = err
				return
			}
		}
	})
	return errors.Join(first, err)
}

// Unpin lets an image's chunks be evicted; one that is not pinned is success.
func (im *Images) Unpin(_ context.Context, name string) error { return im.n.cache.Unpin(name) }

// Export writes an image to a file on this host, in the background: beside the
// file first, so that a cut export leaves none.
func (im *Images) Export(name, file string) (OperationView, error) {
	if err := content.CheckName(name); err != nil {
		return OperationView{}, err
	}
	if !filepath.IsAbs(file) {
		return OperationView{}, fmt.Errorf("export to %q: %w: want an absolute path", file, content.ErrInvalid)
	}
	return im.n.Operations.Start("export", name, func(ctx context.Context, op *Operation) error {
		k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
		if err != nil {
			return err
		}
		tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".export-*")
		if err != nil {
			return err
		}
		err = im.exportTo(ctx, *k.head, tmp, func(n int64) { op.Update(func(v *OperationView) { v.Done = n }) })
		err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
		if err == nil {
			err = os.Rename(tmp.Name(), file)
		}
		if err != nil {
			return errors.Join(err, os.Remove(tmp.Name()))
		}
		return nil
	})
}

func (im *Images) exportTo(ctx context.Context, head pack.Head, f *os.File, progress func(int64)) error {
	m, err := im.open(fetch.Root{Head: head})
	if err != nil {
		return err
	}
	return convert.Export(ctx, whole{m}, f, progress)
}

// whole reads whole chunks of an image.
type whole struct{ *fetch.Image }

// ReadChunk implements convert.Source.
func (w whole) ReadChunk(ctx context.Context, index uint64, p []byte) error {
	return w.Image.ReadChunk(ctx, index, 0, p)
}

// Verify reads every chunk of an image at the origin, in the background, and
// fails with the first that is not what its name says.
func (im *Images) Verify(name string) (OperationView, error) {
	if err := content.CheckName(name); err != nil {
		return OperationView{}, err
	}
	return im.n.Operations.Start("verify", name, func(ctx context.Context, op *Operation) error {
		store := im.n.origin.readable()
		if store == nil {
			return fmt.Errorf("verify %q: %w: the origin does not answer", name, content.ErrUnavailable)
		}
		k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
		if err != nil {
			return err
		}
		r := pack.NewReader(store)
		m, err := r.ReadManifest(ctx, *k.head)
		if err != nil {
			return fmt.Errorf("verify %q: %w", name, err)
		}
		var done atomic.Int64
		op.Update(func(v *OperationView) { v.Total = int64(len(m.Packs)) })
		for _, id := range m.Packs {
			if err := r.VerifyPack(ctx, id); err != nil {
				return fmt.Errorf("verify %q: %w", name, err)
			}
			op.Update(func(v *OperationView) { v.Done = done.Add(1); v.Note = "packs" })
		}
		return nil
	})
}

// PublicBlock returns a block of public content that this node holds.
func (n *Node) PublicBlock(ctx context.Context, id content.CID) (content.Verified, error) {
	v, err := n.cache.Get(id, nil)
	if err != nil || !n.fetch.IsPublic(ctx, id) {
		return content.Verified{}, fmt.Errorf("block %s: %w", id, content.ErrNotFound)
	}
	return v, nil
}
