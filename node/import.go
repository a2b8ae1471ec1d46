package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
)

// ImportRequest says what to publish.
type ImportRequest struct {
	Source  string
	Format  string
	Scope   content.Scope
	Replace bool
	Size    int64
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
	opts := convert.Options{Path: req.Source, Format: convert.Format(req.Format), Temp: filepath.Join(im.n.cfg.Dir, TempDir), Size: req.Size, Note: note}
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
