// Package images publishes disk images under names, and handles those that are
// published: it lists, tags and removes them, keeps them in this node's cache, writes
// them to files, and reads them at the origin to check them. What a name stands for is
// for package records to say, and where chunks come from for package fetch.
package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/boots"
	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

// Config is what Images are built from.
type Config struct {
	// Dir is the node's data folder. What imports remember, and their working files, are
	// in it, and nothing of it is ever in an image.
	Dir        string
	Names      *records.Names
	Fetcher    *fetch.Fetcher
	Boots      *boots.Boots
	Cache      *cache.Cache
	Operations *operations.Operations
	// Self tells this node from others; its Follow names are kept warm, see Run. Matching
	// asks a member, of all that do the same, which names of those there are: see Matches.
	// Mesh is about how many members there are.
	Self     string
	Follow   []follow.Pattern
	Matching func(context.Context, []follow.Pattern) ([]Match, error)
	Mesh     func() int
	// Farm returns the other members of this farm, and Call asks one, by its ID.
	Farm func(context.Context) []Neighbour
	Call func(ctx context.Context, id, method string, body []byte) ([]byte, error)
	// Holder says who a member is.
	Holder func(peer.ID) Holder
	// Readable returns the origin, nil while it can't be read, and Writable the same, or
	// why nothing can be written to it.
	Readable func() bucket.Bucket
	Writable func() (bucket.Bucket, error)
	// Target opens another store than the origin, by its URL.
	Target func(ctx context.Context, url string) (bucket.Bucket, error)
	// Suspect is told of packs that were found damaged.
	Suspect  func(context.Context, ...pack.ID)
	Signer   trust.Signer
	Verifier *trust.Verifier
	Codec    *content.Codec
	Now      func() time.Time
	Log      *slog.Logger
}

// Image is an image, a tree, or a tag of one.
type Image struct {
	Name    string        `json:"name"`
	Kind    content.Kind  `json:"kind"`
	Target  string        `json:"target,omitempty" doc:"of a tag: the image or tree that it stands for"`
	CID     content.CID   `json:"cid"`
	Size    int64         `json:"size" doc:"bytes of the disk, or of all that a tree has"`
	Stored  uint64        `json:"stored" doc:"bytes that its chunks take at the origin"`
	Chunks  uint64        `json:"chunks" doc:"chunks that are not holes"`
	Scope   content.Scope `json:"scope"`
	Version uint64        `json:"version"`
	Signed  time.Time     `json:"signed_at"`
	Source  string        `json:"source,omitempty"`
	Pinned  bool          `json:"pinned"`
	Boot    *BootList     `json:"boot,omitempty" doc:"what its boots read first, which is brought in when one begins; absent if nobody has recorded it, see image profile"`
	// Followed is nil for a name that this node does not follow.
	Followed *follow.Standing `json:"followed,omitempty" doc:"how far the node is that keeps it warm; absent if it is not followed"`
	Holders  []Holder         `json:"holders,omitempty" doc:"members that are known to have some of it, where that was asked for"`
	// Bytes and Copies are of this node alone.
	Bytes     fetch.Bytes `json:"bytes" doc:"what this node read of it, or of what has the same content, since its start"`
	Copies    float64     `json:"origin_copies" doc:"how often this node read all of it from the origin: the bytes from there, of those that it takes there"`
	Age       float64     `json:"age_seconds" doc:"time since a member of the mesh saw this version at the origin"`
	Confirmed bool        `json:"confirmed" doc:"false when the origin has not answered with it this time"`
}

// Images are those that this node knows of. Safe for concurrent use.
type Images struct {
	cfg      Config
	listings *listings
	follower *follower
	exports  folders
}

// Updater is told how far long work is: an operation is one.
type Updater interface {
	Update(change func(*operations.View))
	// Pass returns once the work may go on; ctx ends that.
	Pass(ctx context.Context) error
}

// New builds Images.
func New(cfg Config) *Images {
	im := &Images{cfg: cfg, listings: newListings()}
	im.follower = newFollower(im)
	return im
}

// RootOf is the root that a record stands for; the record has one.
func RootOf(k records.Known) fetch.Root {
	return fetch.Root{Head: *k.Head, Lineage: k.Lineage, Envelope: k.Sealed, As: []content.Ref{{Kind: k.Kind, Name: k.Name}}}
}

func (im *Images) begin(kind, name string, work func(context.Context, *operations.Operation) error) (operations.View, error) {
	if err := content.KindImage.CheckName(name); err != nil {
		return operations.View{}, err
	}
	return im.cfg.Operations.Start(kind, name, func(ctx context.Context, op *operations.Operation) error {
		return work(budget.With(ctx, budget.NewTurn(budget.Prefetch, kind)), op) // guests go first at the origin
	})
}

func (im *Images) info(k records.Known) (Image, error) {
	body, err := catalog.DecodeImage(im.cfg.Codec, k.Body)
	if err != nil {
		return Image{}, err
	}
	read := im.cfg.Fetcher.Tally().BytesOf(k.Root)
	return Image{
		Bytes: read, Copies: float64(read.Origin) / float64(max(body.Stored, 1)), Name: k.Name, Kind: k.Kind, Target: body.Target, CID: k.Root, Size: body.Head.Root.Size, Stored: body.Stored, Chunks: body.Chunks,
		Scope: body.Head.Scope, Version: k.Version, Signed: k.SignedAt, Source: body.Source, Pinned: slices.Contains(im.cfg.Cache.Pinned(), k.Name),
		Age: im.cfg.Names.Age(k).Seconds(), Confirmed: k.Confirmed, Followed: im.follower.standing(k.Name), Boot: im.bootList(k.Root, body.Boot),
	}, nil
}

// List returns up to limit images or trees, by the kind of their root, and tags of them whose names come behind
// after, by name, and whether there are more: those of the origin, and unconfirmed those that this node has met and
// the origin does not tell of, all of them while it is away.
func (im *Images) List(ctx context.Context, root content.RootKind, after string, limit int) (page []Image, more bool, err error) {
	page = []Image{}
	for more = true; more && len(page) < limit; {
		var known []records.Known
		known, more = im.cfg.Names.List(ctx, content.KindImage, "", after, limit-len(page))
		for _, k := range known {
			after = k.Name
			if i, err := im.info(k); err == nil && k.Head.Root.Kind == root {
				page = append(page, i)
			}
		}
		more = more && len(known) > 0
	}
	return page, more, ctx.Err()
}

// Get returns one image or tag.
func (im *Images) Get(ctx context.Context, name string) (Image, error) {
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, false)
	if err != nil {
		return Image{}, err
	}
	return im.info(k)
}

// target looks up what long work is on, and shows how much there is to do, of an image
// in chunks of so many bytes. The origin says what the name stands for now.
func (im *Images) target(ctx context.Context, op *operations.Operation, name string, total func(i Image, chunk int64) int64) (records.Known, error) {
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return k, err
	}
	i, err := im.info(k)
	if err == nil {
		op.Update(func(v *operations.View) { v.Total = total(i, int64(k.Head.Root.ChunkSize)) })
	}
	return k, err
}

// record commits an image or tag and makes it known here.
func (im *Images) record(ctx context.Context, kind content.Kind, name string, body catalog.Image, base *catalog.Record) error {
	b, err := body.Encode(im.cfg.Codec)
	if err != nil {
		return err
	}
	_, err = im.cfg.Names.Commit(ctx, catalog.Change{Kind: kind, Name: name, Farm: body.Head.Scope.Farm(), Body: b, Base: base})
	return err
}

// tagTries bounds how often a tag is written over what others write meanwhile. The first
// is over what is known of it, which the origin compares: nobody has to look before.
const tagTries = 4

// Tag lets a tag stand for what the image is now.
func (im *Images) Tag(ctx context.Context, name, tag string) (Image, error) {
	if err := content.KindTag.CheckName(tag); err != nil {
		return Image{}, err
	}
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, true)
	if err != nil {
		return Image{}, err
	}
	body, err := catalog.DecodeImage(im.cfg.Codec, k.Body)
	if err != nil {
		return Image{}, err
	}
	body.Target = name
	var base *catalog.Record
	if old, held := im.cfg.Names.Held(content.KindImage, tag); held && !old.Tombstone && old.ETag != "" {
		base = &old.Record
	}
	for range tagTries {
		if base != nil && base.Kind != content.KindTag {
			return Image{}, fmt.Errorf("tag %q: %w: it is an image", tag, content.OtherKind)
		}
		err = im.record(ctx, content.KindTag, tag, body, base)
		if errors.Is(err, content.Gone) || !errors.Is(err, content.ErrConflict) && !errors.Is(err, content.ErrExists) {
			break
		}
		old, failed := im.cfg.Names.Lookup(ctx, content.KindImage, tag, true)
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
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, true)
	if errors.Is(err, content.ErrNotFound) {
		return Removed{}, nil
	}
	if err != nil {
		return Removed{}, err
	}
	if err := im.cfg.Names.Delete(ctx, k.Record); err != nil {
		return Removed{}, err
	}
	return Removed{k.Kind, im.cfg.Names.TagsOf(name)}, im.cfg.Cache.Unpin(name)
}

// warmKind is what operations that warm an image on this node are called.
const warmKind = "warm"

// Warm fetches all of an image into the cache, in the background. If it is followed, that
// is brought up to date too.
func (im *Images) Warm(name string) (operations.View, error) { return im.warm(name, 0) }

// warm is Warm of what the name stands for since that version.
func (im *Images) warm(name string, version uint64) (operations.View, error) {
	return im.begin(warmKind, name, func(ctx context.Context, op *operations.Operation) error {
		im.follower.want(name)
		k, err := im.cfg.Names.LookupVersion(ctx, content.KindImage, name, version)
		if err != nil {
			return err
		}
		i, err := im.info(k)
		if err != nil {
			return err
		}
		m, err := im.cfg.Fetcher.Learn(RootOf(k))
		if err != nil {
			return err
		}
		total := int64(i.Chunks) * int64(k.Head.Root.ChunkSize)
		op.Update(func(v *operations.View) { v.Total = total })
		if limit := im.cfg.Cache.Stats().Limit; total > limit { // to fetch it would push out the rest for nothing
			return fmt.Errorf("warm %q: %w: it takes up to %d bytes, and the cache may take %d; raise its quota, or make room on the disk", name, content.ErrNoSpace, total, limit)
		}
		return m.Warm(ctx, func(s fetch.Source, n int) {
			op.Update(func(v *operations.View) { v.Done += int64(n); v.Bytes[s.String()] += int64(n) })
		})
	})
}

// Pin keeps an image's chunks in the cache, those too that come later.
func (im *Images) Pin(ctx context.Context, name string) error {
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, false)
	if err != nil {
		return err
	}
	ids, err := im.all(ctx, k) // first: a part would replace the whole of an older pin
	if err != nil {
		return fmt.Errorf("pin %q: %w", name, err)
	}
	return im.cfg.Cache.Pin(name, 0, slices.Values(ids))
}

// Unpin lets an image's chunks be evicted; one that is not pinned is success.
func (im *Images) Unpin(_ context.Context, name string) error { return im.cfg.Cache.Unpin(name) }

// PublicBlock returns a block of public content that this node holds: a chunk, a node
// of a map, or a root. One that it holds and that is not public is as absent as any
// other: it is not even read.
func (im *Images) PublicBlock(id content.CID) (content.Verified, error) {
	v, err := im.cfg.Cache.GetFor(id, cache.ReachPublic, nil)
	if err == nil {
		return v, nil
	}
	if root, ok := im.cfg.Fetcher.PublicRoot(id); ok {
		return root, nil
	}
	if k, ok := im.cfg.Names.OfRoot(id, content.Public()); ok {
		return k.Head.Root.Encode(im.cfg.Codec)
	}
	return content.Verified{}, fmt.Errorf("block %s: %w", id, content.ErrNotFound)
}

// Keep returns what puts the objects of a root that this node makes into its cache, as far
// as its scope goes. Without room they are not kept, and whoever makes them goes on.
func (im *Images) Keep(scope content.Scope) func(content.Verified) {
	reach := cache.ReachOf(scope, im.cfg.Signer.Identity())
	return func(v content.Verified) { _ = im.cfg.Cache.Put(v, reach) }
}

// isDisk fails for a tree, which nothing boots from.
func isDisk(k records.Known) error {
	if k.Head.Root.Kind != content.RootDisk {
		return fmt.Errorf("%q: %w: it is a tree of files, not a disk", k.Name, content.OtherKind)
	}
	return nil
}

// Base implements volumes.Library: what boots want of it is brought in from now on.
func (im *Images) Base(ctx context.Context, ref content.Ref) (fetch.Root, error) {
	return im.stands(ctx, ref, im.cfg.Boots.Ahead)
}

// Stands implements volumes.Library.
func (im *Images) Stands(ctx context.Context, ref content.Ref) (fetch.Root, error) {
	return im.stands(ctx, ref, func(*fetch.Image) {})
}

// stands is Stands, and does something with what it is as soon as that is known.
func (im *Images) stands(ctx context.Context, ref content.Ref, with func(*fetch.Image)) (fetch.Root, error) {
	if ref.Kind != content.KindImage {
		return fetch.Root{}, fmt.Errorf("%s: %w: this version creates volumes from images", ref, errors.ErrUnsupported)
	}
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, ref.Name, true)
	if err != nil {
		return fetch.Root{}, err
	}
	if err := isDisk(k); err != nil {
		return fetch.Root{}, err
	}
	r := RootOf(k)
	if m, err := im.cfg.Fetcher.Learn(r); err == nil {
		with(m)
		m.Prepare(ctx) // the new volume's first read knows whom to ask
	}
	return r, nil
}

// Image implements volumes.Library. The record of the image may have ended since, so
// it is not learned from what the volume keeps of it, but from what stands now.
func (im *Images) Image(_ context.Context, r fetch.Root) (*fetch.Image, error) {
	if root, err := r.Head.Root.Encode(im.cfg.Codec); err == nil {
		if k, ok := im.cfg.Names.OfRoot(root.CID(), r.Head.Scope); ok {
			known := RootOf(k)
			if _, err := im.cfg.Fetcher.Learn(known); err != nil {
				return nil, err
			}
			r.As = append(r.As, known.As...)
			for _, tag := range im.cfg.Names.TagsOf(k.Name) {
				r.As = append(r.As, content.Ref{Kind: content.KindTag, Name: tag})
			}
		}
	}
	return im.cfg.Fetcher.Open(r)
}
