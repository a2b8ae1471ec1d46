package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Image is an image or a tag of one.
type Image struct {
	Name      string        `json:"name"`
	Kind      content.Kind  `json:"kind"`
	Target    string        `json:"target,omitempty" doc:"of a tag: the image it stands for"`
	CID       content.CID   `json:"cid"`
	Size      int64         `json:"size" doc:"bytes of the disk"`
	Stored    uint64        `json:"stored" doc:"bytes that its chunks take at the origin"`
	Chunks    uint64        `json:"chunks" doc:"chunks that are not holes"`
	Scope     content.Scope `json:"scope"`
	Version   uint64        `json:"version"`
	Signed    time.Time     `json:"signed_at"`
	Source    string        `json:"source,omitempty"`
	Pinned    bool          `json:"pinned"`
	Age       float64       `json:"age_seconds" doc:"time since a member of the mesh saw this version at the origin"`
	Confirmed bool          `json:"confirmed" doc:"false when the origin has not answered with it this time"`
}

// Images publishes images and handles those that are published.
type Images struct{ n *Node }

func (im *Images) info(k records.Known) (Image, error) {
	body, err := catalog.DecodeImage(im.n.codec, k.Body)
	if err != nil {
		return Image{}, err
	}
	return Image{
		Name: k.Name, Kind: k.Kind, Target: body.Target, CID: k.Root, Size: body.Head.Root.Size, Stored: body.Stored, Chunks: body.Chunks,
		Scope: body.Head.Scope, Version: k.Version, Signed: k.SignedAt, Source: body.Source, Pinned: slices.Contains(im.n.cache.Pinned(), k.Name),
		Age: im.n.Names.Age(k).Seconds(), Confirmed: k.Confirmed,
	}, nil
}

// List returns up to limit images and tags whose names come behind after, by name, and
// whether there are more: those of the origin, and unconfirmed those that this node has
// met and the origin does not tell of, all of them while it is away.
func (im *Images) List(ctx context.Context, after string, limit int) (page []Image, more bool, err error) {
	known, more := im.n.Names.List(ctx, content.KindImage, after, limit)
	page = []Image{}
	for _, k := range known {
		if i, err := im.info(k); err == nil {
			page = append(page, i)
		}
	}
	return page, more, nil
}

// Get returns one image or tag.
func (im *Images) Get(ctx context.Context, name string) (Image, error) {
	if err := content.CheckName(name); err != nil {
		return Image{}, err
	}
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, false)
	if err != nil {
		return Image{}, err
	}
	return im.info(k)
}

// record commits an image or tag and makes it known here.
func (im *Images) record(ctx context.Context, kind content.Kind, name string, body catalog.Image, base *catalog.Record) error {
	b, err := body.Encode(im.n.codec)
	if err != nil {
		return err
	}
	_, err = im.n.Names.Commit(ctx, catalog.Change{Kind: kind, Name: name, Farm: body.Head.Scope.Farm(), Body: b, Base: base})
	return err
}

// tagTries bounds how often a tag is written over what others write meanwhile. The first
// is over what is known of it, which the origin compares: nobody has to look before.
const tagTries = 4

// Tag lets a tag stand for what the image is now.
func (im *Images) Tag(ctx context.Context, name, tag string) (Image, error) {
	if err := content.CheckName(tag); err != nil {
		return Image{}, err
	}
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return Image{}, err
	}
	body, err := catalog.DecodeImage(im.n.codec, k.Body)
	if err != nil {
		return Image{}, err
	}
	body.Target = name
	var base *catalog.Record
	if old, held := im.n.Names.Held(content.KindImage, tag); held && !old.Tombstone && old.ETag != "" {
		base = &old.Record
	}
	for range tagTries {
		if base != nil && base.Kind != content.KindTag {
			return Image{}, fmt.Errorf("tag %q: %w: it is an image", tag, content.OtherKind)
		}
		err = im.record(ctx, content.KindTag, tag, body, base)
		if !errors.Is(err, content.ErrConflict) && !errors.Is(err, content.ErrExists) {
			break
		}
		old, failed := im.n.Names.Lookup(ctx, content.KindImage, tag, true)
		if base = &old.Record; errors.Is(failed, content.ErrNotFound) {
			base = nil
		} else if failed != nil {
			return Image{}, failed
		}
	}
	if err != nil {
		return Image{}, err
	}
	return im.Get(ctx, tag)
}

// Removed says what a Remove came upon.
type Removed struct {
	Kind content.Kind `json:"kind,omitempty" doc:"of what had the name; absent when nothing had"`
	Tags []string     `json:"tags,omitempty" doc:"tags that were set on the image, as far as this node knows, and stand for what it was still"`
}

// Remove deletes a name; what it stood for stays readable for those who hold it,
// and is collected later. An absent name is success.
func (im *Images) Remove(ctx context.Context, name string) (Removed, error) {
	if err := content.CheckName(name); err != nil {
		return Removed{}, err
	}
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, true)
	if errors.Is(err, content.ErrNotFound) {
		return Removed{}, nil
	}
	if err != nil {
		return Removed{}, err
	}
	if _, err := im.n.Names.Commit(ctx, catalog.Change{Kind: k.Kind, Name: name, Farm: k.Farm, Base: &k.Record, Delete: true}); err != nil {
		return Removed{}, err
	}
	return Removed{k.Kind, im.n.Names.TagsOf(name)}, im.n.cache.Unpin(name)
}

// image opens what a name stands for.
func (im *Images) image(ctx context.Context, name string) (*fetch.Image, error) {
	k, err := im.n.Names.Lookup(ctx, content.KindImage, name, false)
	if err != nil {
		return nil, err
	}
	return im.n.fetch.Learn(rootOf(k))
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
		total, limit := int64(i.Chunks)*int64(m.Root().ChunkSize), im.n.cache.Stats().Limit
		if total > limit { // to fetch it would push out the rest for nothing
			return fmt.Errorf("warm %q: %w: it takes up to %d bytes, and the cache may take %d; raise its quota, or make room on the disk", name, content.ErrNoSpace, total, limit)
		}
		op.Update(func(v *OperationView) { v.Total = total })
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
	var ids []content.CID // all of them first: a part would replace the whole of an older pin
	for id, err := range m.CIDs(ctx) {
		if err != nil {
			return fmt.Errorf("pin %q: %w", name, err)
		}
		ids = append(ids, id)
	}
	return im.n.cache.Pin(name, slices.Values(ids))
}

// Unpin lets an image's chunks be evicted; one that is not pinned is success.
func (im *Images) Unpin(_ context.Context, name string) error { return im.n.cache.Unpin(name) }

// PublicBlock returns a block of public content that this node holds: a chunk, a node
// of a map, or a root. One that it holds and that is not public is as absent as any
// other: it is not even read.
func (n *Node) PublicBlock(_ context.Context, id content.CID) (content.Verified, error) {
	v, err := n.cache.GetFor(id, cache.ReachPublic, nil)
	if err == nil {
		return v, nil
	}
	if root, ok := n.fetch.PublicRoot(id); ok {
		return root, nil
	}
	if k, ok := n.Names.OfRoot(id, content.Public()); ok {
		return k.Head.Root.Encode(n.codec)
	}
	return content.Verified{}, fmt.Errorf("block %s: %w", id, content.ErrNotFound)
}
