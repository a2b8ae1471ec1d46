package images

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

const (
	// laidLeast is the part of a boot list, in hundredths, that lies together still where a layout is worth nothing more:
	// a boot asks for the rest by some requests of its own.
	laidLeast = 95
	// ownLeast is the part of the chunks that a root has in a pack, in hundredths, that is of the list, where that is a pack of the
	// list: a few chunks that are not wanted any more are read with the others.
	ownLeast = 75
	// keptLeast is the part of a list, in hundredths, that a new version of the image has at the same places where that is
	// the version's list still: of any less, its own boots tell more.
	keptLeast = 50
)

// laid is a boot list, and where its chunks lie under a head of its root.
type laid struct {
	*catalog.Boot
	at    map[uint64]pack.Extent
	above map[pack.ID]uint64 // bytes of the nodes of the map that are above them
	from  *pack.Reader
	base  build.Base
}

// lay finds what of a list is no hole. It is nil where that is nothing.
func lay(ctx context.Context, from *pack.Reader, head pack.Head, list *catalog.Boot) (*laid, error) {
	above := map[pack.ID]uint64{}
	at, err := build.Find(ctx, func(ctx context.Context, scope content.Scope, level int, p pack.Pair) (pack.MapNode, error) {
		above[p.Node.Pack] += uint64(p.Node.Length) + uint64(p.Page.Length)
		return from.ReadNode(ctx, scope, level, p)
	}, head, list.All())
	if err != nil {
		return nil, err
	}
	base, err := build.ReadBase(ctx, from, head)
	if err != nil {
		return nil, err
	}
	out := &laid{list.Only(func(chunk uint64) bool { return !at[chunk].CID.IsHole() }), at, above, from, base}
	if out.Boot == nil {
		return nil, nil
	}
	out.Stored = out.stored()
	return out, nil
}

// stored are the bytes that the chunks take, each different one once.
func (l *laid) stored() (n uint64) {
	seen := map[content.CID]bool{}
	for chunk := range l.All() {
		if e := l.at[chunk]; !seen[e.CID] {
			seen[e.CID] = true
			n += uint64(e.Length)
		}
	}
	return n
}

// packs are those of the list: few other chunks of the root are in them.
func (l *laid) packs() map[pack.ID]bool {
	if l == nil {
		return nil
	}
	bytes, are := map[pack.ID]uint64{}, map[pack.ID]bool{}
	for chunk := range l.All() {
		bytes[l.at[chunk].Pack] += uint64(l.at[chunk].Length)
	}
	for _, p := range l.base.Manifest.Packs {
		are[p.ID] = bytes[p.ID] > 0 && bytes[p.ID]*100 >= (p.Bytes-l.above[p.ID])*ownLeast
	}
	return are
}

// together reports whether as good as all of the list lies in packs of its own.
func (l *laid) together() bool {
	are, n := l.packs(), 0
	for chunk := range l.All() {
		if are[l.at[chunk].Pack] {
			n++
		}
	}
	return n*100 >= l.Chunks()*laidLeast
}

// chunks yields those of the list in its order.
func (l *laid) chunks(ctx context.Context, op Updater, read func(ctx context.Context, index uint64, off int, p []byte) error) iter.Seq2[build.Change, error] {
	return func(yield func(build.Change, error) bool) {
		raw := make([]byte, l.base.Head.Root.ChunkSize)
		for chunk := range l.All() {
			err := op.Pass(ctx)
			if err == nil {
				err = read(ctx, chunk, 0, raw)
			}
			if !yield(build.Change{Index: chunk, Raw: raw}, err) || err != nil {
				return
			}
			op.Update(func(v *operations.View) { v.Done += int64(len(raw)) })
		}
	}
}

// LayOut has an image say what its boots want, and has that lie together at the origin: see build.Relayout. Readers of what
// the record named before go on. Where as good as all of it lies together already, the record alone is written anew. Tags of
// the image that stand for the same root say the same, as far as they can be written. An image that stands for another root
// by now is content.ErrConflict. Holes of the list, and what a record has no room for, are left out.
func (im *Images) LayOut(ctx context.Context, op Updater, name string, list *catalog.Boot) error {
	ctx = budget.With(ctx, budget.NewTurn(budget.Prefetch, "layout"))
	body, err := im.layOutAs(ctx, op, name, list)
	if err != nil {
		return fmt.Errorf("lay out %q: %w", name, err)
	}
	for _, tag := range im.cfg.Names.TagsOf(name) {
		old, err := im.booted(ctx, tag, list, body.Head.Scope)
		if err == nil && old.Kind == content.KindTag {
			err = im.replace(ctx, old.Kind, tag, im.saying(old, body), old)
		}
		if err != nil {
			im.cfg.Log.Warn("a tag does not say what boots of its image want", "tag", tag, "image", name, "err", err)
		}
	}
	return nil
}

// layOutAs lays out what a name stands for, and writes its record. Where another has written that meanwhile, of the same
// root, this is written over it.
func (im *Images) layOutAs(ctx context.Context, op Updater, name string, list *catalog.Boot) (body catalog.Image, err error) {
	old, err := im.booted(ctx, name, list, content.Scope{})
	if err == nil {
		body, err = im.layOut(ctx, op, old, list.Fit(catalog.BootSizeMax))
	}
	for try := 1; err == nil; try++ {
		err = im.replace(ctx, old.Kind, name, im.saying(old, body), old)
		if !errors.Is(err, content.ErrConflict) || errors.Is(err, content.Gone) || try == tagTries {
			break
		}
		old, err = im.booted(ctx, name, list, body.Head.Scope)
	}
	return body, err
}

// booted returns what a name stands for, if that is what the list is of, and this node may say so; in a scope, zero for any.
func (im *Images) booted(ctx context.Context, name string, list *catalog.Boot, in content.Scope) (*version, error) {
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, true)
	if err == nil {
		err = isDisk(k)
	}
	switch id := im.cfg.Signer.Identity(); {
	case err != nil:
		return nil, err
	case k.Root != list.Root || !in.IsZero() && k.Scope != in:
		return nil, fmt.Errorf("%w: it stands for another version by now, of root %s in scope %s; boots of that one tell what it needs", content.ErrConflict, k.Root, k.Scope)
	case !id.MaySign(k.Kind, k.Farm):
		return nil, fmt.Errorf("%w: its record is written by publishers and admins, and this node is a %s of farm %q", content.ErrForbidden, id.Role, id.Farm)
	}
	body, err := catalog.DecodeImage(im.cfg.Codec, k.Body)
	return &version{k, body}, err
}

// layOut has a list lie together, and returns what a record says of it.
func (im *Images) layOut(ctx context.Context, op Updater, old *version, list *catalog.Boot) (catalog.Image, error) {
	at, err := im.origin(nil)
	if err != nil {
		return catalog.Image{}, err
	}
	body, from := old.body, pack.NewReader(at.store)
	l, err := lay(ctx, from, body.Head, list)
	switch {
	case err != nil:
		return body, err
	case l == nil:
		return body, fmt.Errorf("%w: the list names no chunk that is not a hole", content.ErrInvalid)
	}
	body.Boot = l.Boot
	if _, err := body.Encode(im.cfg.Codec); err != nil || l.together() { // what no record may say is not stored either
		return body, err
	}
	m, err := im.cfg.Fetcher.Learn(RootOf(old.Known))
	if err != nil {
		return body, err
	}
	op.Update(func(v *operations.View) { v.Total = int64(l.Chunks()) * int64(body.Head.Root.ChunkSize) })
	if err := bring(ctx, m, l.Boot); err != nil {
		im.cfg.Log.Debug("not all that is laid out came at once", "root", l.Root, "err", err)
	}
	now, stats, err := build.Relayout(ctx, build.Config{
		Bucket: at.store, Signer: im.cfg.Signer, Now: im.cfg.Now, Codec: im.cfg.Codec, Log: im.cfg.Log, OnObject: im.Keep(body.Head.Scope),
		Standing: at.secure, Every: secureEvery,
		Progress: func(s build.Stats) { op.Update(func(v *operations.View) { v.Bytes["sent"] = int64(s.UploadedBytes) }) },
	}, l.base, from.ReadNode, l.chunks(ctx, op, m.ReadInTurn))
	if err != nil {
		return body, err
	}
	body.Stored += stats.NewStoredBytes - l.Stored
	body.Head, l.Stored = now.Head, stats.NewStoredBytes
	return body, nil
}

// succeed publishes what follows a version of an image, with what of a list holds for it. Where that version was laid out anew
// meanwhile this follows that: who imports for hours does not fail by who profiles.
func (im *Images) succeed(ctx context.Context, name string, body catalog.Image, old *version, list *laid) error {
	for try := 1; ; try++ {
		body.Boot = im.listFor(ctx, list, body.Head)
		err := im.replace(ctx, content.KindImage, name, body, old)
		if old == nil || !errors.Is(err, content.ErrConflict) || errors.Is(err, content.Gone) || try == tagTries {
			return err
		}
		now, failed := im.previous(ctx, old.Kind, name, true)
		if failed != nil || now == nil || now.Root != old.Root || now.Scope != old.Scope {
			return err
		}
		old, list = now, im.listOf(ctx, now)
	}
}

// saying returns the body of what stands for the same root as another, with the head and list of that. That who signs it has
// made its files is true of the signer alone.
func (im *Images) saying(old *version, of catalog.Image) catalog.Image {
	body := old.body
	body.Head, body.Boot, body.Stored, body.Files = of.Head, of.Boot, of.Stored, im.made(old)
	return body
}

// listOf returns the boot list of a version, and where it lies; nil for none. Without it a new version is published all the
// same.
func (im *Images) listOf(ctx context.Context, old *version) *laid {
	if old == nil || old.body.Boot == nil {
		return nil
	}
	store, err := im.cfg.Writable()
	var l *laid
	if err == nil {
		l, err = lay(ctx, pack.NewReader(store), old.body.Head, old.body.Boot)
	}
	if err != nil {
		im.cfg.Log.Warn("what boots of an image want is forgotten with this version", "name", old.Name, "err", err)
	}
	return l
}

// inherited is the list of an image that another was made from, by a volume; nil for none that is known here.
func (im *Images) inherited(ctx context.Context, body catalog.Image) *laid {
	for _, root := range body.Lineage {
		for _, scope := range mayReferTo(body.Head.Scope) {
			for k := range im.cfg.Names.ImagesOf(root, scope) {
				if from, err := catalog.DecodeImage(im.cfg.Codec, k.Body); err == nil && from.Boot != nil {
					return im.listOf(ctx, &version{k, from})
				}
			}
		}
	}
	return nil
}

// listFor returns what of a list holds for another version, which has the same chunks at the same places; nil where that is
// too little.
func (im *Images) listFor(ctx context.Context, l *laid, head pack.Head) *catalog.Boot {
	if l == nil {
		return nil
	}
	now := *l
	root, err := head.Root.Encode(im.cfg.Codec)
	if err == nil {
		now.at, err = build.Find(ctx, l.from.ReadNode, head, l.All())
	}
	if err != nil {
		im.cfg.Log.Warn("what boots of the last version want is forgotten", "root", l.Root, "err", err)
		return nil
	}
	now.Boot = l.Only(func(chunk uint64) bool { return now.at[chunk].CID == l.at[chunk].CID })
	if now.Boot == nil || now.Chunks()*100 < l.Chunks()*keptLeast {
		return nil
	}
	now.Boot.Root, now.Boot.Stored = root.CID(), now.stored()
	return now.Boot
}
