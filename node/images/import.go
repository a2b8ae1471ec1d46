package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/records"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/index"
)

// ImportRequest says what to publish.
type ImportRequest struct {
	convert.Options
	Scope   content.Scope `json:"scope,omitzero" doc:"public, mesh or farm/NAME; mesh when not given"`
	Replace bool          `json:"replace,omitempty" doc:"publish a new version of an image that exists"`

	gone []string         // keys of packs that are not referred to: they go
	boot map[pack.ID]bool // packs that are referred to rather than others
}

// Formats is all that the Format of a request may be.
func Formats() []string {
	f, _ := reflect.TypeFor[ImportRequest]().FieldByName("Format")
	return strings.Split(f.Tag.Get("enum"), ",")
}

// Import publishes an image under a name, in the background. What can be known at
// once is refused at once.
func (im *Images) Import(ctx context.Context, name string, req ImportRequest) (operations.View, error) {
	return im.importing(ctx, content.KindImage, name, req, im.publish)
}

// importing has publish work in the background.
func (im *Images) importing(ctx context.Context, kind content.Kind, name string, req ImportRequest, publish func(context.Context, *operations.Operation, string, ImportRequest, *version) error) (operations.View, error) {
	if err := im.mayImport(name, &req); err != nil {
		return operations.View{}, err
	}
	old, err := im.previous(ctx, kind, name, req.Replace)
	if err != nil {
		return operations.View{}, err
	}
	return im.begin("import", name, func(ctx context.Context, op *operations.Operation) error {
		err := publish(ctx, op, name, req, old)
		var gone *catalog.GoneError
		if !errors.As(err, &gone) {
			return err
		}
		im.cfg.Log.Warn("what an import shares with older content was collected as garbage meanwhile; it is stored anew", "name", name, "err", err)
		if old, err = im.previous(ctx, kind, name, req.Replace); err == nil {
			req.gone = gone.Keys
			err = publish(ctx, op, name, req, old)
		}
		if errors.Is(err, content.Gone) {
			err = fmt.Errorf("%w; import again", err)
		}
		return err
	})
}

func (im *Images) mayImport(name string, req *ImportRequest) error {
	if req.Scope.IsZero() {
		req.Scope = content.Mesh()
	}
	if id := im.cfg.Signer.Identity(); !id.MaySign(content.KindImage, "") || !id.MayRead(req.Scope) {
		who := "a publisher or admin"
		if farm := req.Scope.Farm(); farm != "" {
			who += " of farm " + farm
		}
		return fmt.Errorf("import %q: %w: images of scope %s are published by %s; this node's role is %s, its farm %q", name, content.ErrForbidden, req.Scope, who, id.Role, id.Farm)
	}
	if !filepath.IsAbs(req.Path) {
		return fmt.Errorf("import %q: source %q: %w: want an absolute path on the node's host", name, req.Path, content.ErrInvalid)
	}
	if _, err := os.Stat(req.Path); err != nil {
		return fmt.Errorf("import %q: source %s: %w: %w", name, req.Path, content.ErrInvalid, bare(err))
	}
	if _, err := im.cfg.Writable(); err != nil {
		return fmt.Errorf("import %q: %w", name, err)
	}
	return nil
}

// checkSize refuses the size of a file system where none is made: a disk has its own.
func checkSize(disk convert.Disk, asked int64) error {
	if size := disk.Size(); asked > 0 && (size < asked || size >= asked+content.SectorSize) {
		return fmt.Errorf("%w: --size %d is for the file system that a directory or tar file is put into, and this is a disk of %d bytes; a volume may be made larger than its image", content.ErrInvalid, asked, size)
	}
	return nil
}

// publish reads the source, stores what is new, and commits the record last: an
// import that is killed has published nothing, and leaves packs that the next one
// finds.
func (im *Images) publish(ctx context.Context, op *operations.Operation, name string, req ImportRequest, old *version) error {
	note := func(text string) { op.Update(func(v *operations.View) { v.Note = text }) }
	work, said := workingIn(filepath.Join(im.cfg.Dir, TempDir)), []string{}
	req.Temp, req.Except, req.Room, req.Note = work.dir, im.cfg.Dir, work.room, note
	req.Warn = func(text string) { said = append(said, text) }
	if im.made(old) {
		req.Previous = func(ctx context.Context, f *os.File) error {
			if err := work.room(int64(old.body.Chunks) * content.ChunkSizeDefault); err != nil {
				return err
			}
			return im.exportTo(ctx, *old.Head, f, nil)
		}
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	guarded, stop := work.guard(ctx)
	disk, err := convert.Open(guarded, req.Options)
	if err != nil && guarded.Err() != nil {
		err = context.Cause(guarded)
	}
	stop()
	if err != nil {
		return fmt.Errorf("import %q: %w", name, err)
	}
	defer disk.Close()
	if err := checkSize(disk, req.Size); err != nil {
		return fmt.Errorf("import %q from %s: %w", name, req.Path, err)
	}
	_, tree := disk.(convert.Tree)
	if tree && old != nil && req.Previous == nil {
		said = append(said, "made afresh, so that more is sent than has changed: only a version that this node has made of files itself is mounted here")
	}
	note(strings.Join(said, "\n"))
	list := im.listOf(ctx, old)
	req.boot = list.packs()
	body, err := im.store(ctx, op, disk, req, old.lineage())
	if err != nil {
		return fmt.Errorf("import %q from %s: %w", name, req.Path, err)
	}
	if body.Source = filepath.Base(req.Path); filepath.Dir(req.Path) == work.dir {
		body.Source = "standard input" // which the command line has kept there
	}
	body.Files = tree
	return im.succeed(ctx, name, body, old, list)
}

// made tells whether this node has itself made the image's file system, of files. The
// structures of any other may be a guest's or a stranger's, and are nothing for the
// host's kernel.
func (im *Images) made(old *version) bool {
	return old != nil && old.body.Files && old.Signer.Key == im.cfg.Signer.Key.Public()
}

// replace commits the record, and lets others know at once that this node has what it
// has just published.
func (im *Images) replace(ctx context.Context, kind content.Kind, name string, body catalog.Image, old *version) error {
	var base *catalog.Record
	if old != nil {
		base = &old.Record
	}
	if err := im.record(ctx, kind, name, body, base); err != nil {
		return err
	}
	k, _ := im.cfg.Names.Held(content.KindImage, name)
	if k.Head == nil { // another has deleted it since
		return nil
	}
	m, err := im.cfg.Fetcher.Learn(RootOf(k))
	if err == nil {
		err = m.Hold(ctx)
	}
	if err != nil {
		im.cfg.Log.Warn("a new image is not announced yet", "name", name, "err", err)
	}
	return nil
}

// Publish gives a name to an image whose packs are in the bucket.
func (im *Images) Publish(ctx context.Context, name string, body catalog.Image, replace bool) error {
	old, err := im.previous(ctx, content.KindImage, name, replace)
	if err != nil {
		return err
	}
	list := im.listOf(ctx, old)
	if list == nil {
		list = im.inherited(ctx, body)
	}
	if old != nil {
		body.Lineage = old.lineage()
	}
	return im.succeed(ctx, name, body, old, list)
}

// version is what a name stands for before it is published anew.
type version struct {
	records.Known
	body catalog.Image
}

// lineage is that of the version after it, which may be the first.
func (v *version) lineage() []content.CID {
	if v == nil {
		return nil
	}
	all := append([]content.CID{v.Root}, v.Lineage...)
	return all[:min(len(all), content.LineageMax)]
}

// previous returns what of that kind the name stands for, nil when it is free.
func (im *Images) previous(ctx context.Context, kind content.Kind, name string, replace bool) (*version, error) {
	k, err := im.cfg.Names.Lookup(ctx, content.KindImage, name, true)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case k.Kind != kind:
		return nil, fmt.Errorf("import %q: %w: it is a %s; choose another name, or remove it first", name, content.OtherKind, k.Kind)
	case !replace:
		return nil, fmt.Errorf("import %q: %w; give --replace to publish a new version of it", name, content.ErrExists)
	}
	body, err := catalog.DecodeImage(im.cfg.Codec, k.Body)
	return &version{k, body}, err
}

// store builds the packs of a disk, and returns what the record says of it.
func (im *Images) store(ctx context.Context, op Updater, disk convert.Disk, req ImportRequest, lineage []content.CID) (catalog.Image, error) {
	at, err := im.origin(req.gone)
	if err != nil {
		return catalog.Image{}, err
	}
	at.first = req.boot
	return im.build(ctx, op, build.Config{Scope: req.Scope, Size: disk.Size(), Lineage: lineage}, at, func(b *build.Builder, _ *index.Index) error {
		err := convert.Chunks(ctx, disk, content.ChunkSizeDefault, b.Add, func(off int64) {
			op.Update(func(v *operations.View) { v.Done, v.Total = min(off, disk.Size()), disk.Size() })
		})
		if err == nil { // what is past the last byte is a hole
			op.Update(func(v *operations.View) { v.Done, v.Total = disk.Size(), disk.Size() })
		}
		return err
	})
}

// place is where packs are stored.
type place struct {
	store bucket.Bucket
	known bucket.Bucket    // the same, as far as what is there may be referred to
	dir   string           // what is remembered of that
	swept bool             // garbage is collected there
	first map[pack.ID]bool // packs of it that are referred to rather than others
}

// origin is the mesh's, of which some packs are not referred to.
func (im *Images) origin(gone []string) (place, error) {
	store, err := im.cfg.Writable()
	known := only{store, func(key string) bool { return !slices.Contains(gone, key) }}
	return place{store: store, known: known, dir: filepath.Join(im.cfg.Dir, "index"), swept: true}, err
}

// secureEvery is how often all is kept from being collected that a long import refers to: often within the grace, as the
// record that names it comes last.
const secureEvery = garbage.GraceMin / 4

// secure has packs stay.
func (p place) secure(ctx context.Context, keys []string) error {
	lost, err := garbage.Secure(ctx, p.store, keys, nil)
	return cmp.Or(err, goneFrom(lost))
}

// goneFrom says that packs are gone, if there are any.
func goneFrom(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	return &catalog.GoneError{Keys: keys}
}

// build builds the packs of what fill adds. Its chunks stay in this node's cache: the farm of the importer need not
// fetch what it has made.
func (im *Images) build(ctx context.Context, op Updater, cfg build.Config, at place, fill func(*build.Builder, *index.Index) error) (catalog.Image, error) {
	known, err := index.Load(ctx, index.Config{
		Bucket: at.known, Scopes: mayReferTo(cfg.Scope), First: at.first, Verifier: im.cfg.Verifier, Dir: at.dir, Now: im.cfg.Now, Log: im.cfg.Log,
	})
	if err != nil {
		return catalog.Image{}, err
	}
	defer func() {
		if err := known.Save(); err != nil {
			im.cfg.Log.Warn("which frames were read for this import is not remembered", "err", err)
		}
	}()
	cfg.Bucket, cfg.Known, cfg.Signer, cfg.Now, cfg.Codec, cfg.Log = at.store, known, im.cfg.Signer, im.cfg.Now, im.cfg.Codec, im.cfg.Log
	if cfg.OnObject = im.Keep(cfg.Scope); at.swept {
		cfg.Standing, cfg.Every = at.secure, secureEvery
	}
	cfg.Progress = func(s build.Stats) {
		op.Update(func(v *operations.View) {
			v.Bytes["new"], v.Bytes["sent"] = int64(s.NewRawBytes), int64(s.UploadedBytes)
		})
	}
	b, err := build.New(ctx, cfg)
	if err != nil {
		return catalog.Image{}, err
	}
	if err := fill(b, known); err != nil {
		b.Abort()
		return catalog.Image{}, err
	}
	head, stats, err := b.Finish(ctx)
	if err != nil {
		return catalog.Image{}, err
	}
	return catalog.Image{Head: head, Lineage: cfg.Lineage, Chunks: stats.Chunks, Stored: stats.StoredBytes}, complete(ctx, at.store, b.Manifest(), known)
}

// mayReferTo returns the scopes whose packs content of scope s may refer to: its own and
// the wider ones. Packs of others are not even listed, so that an import takes as
// long whatever they hold.
func mayReferTo(s content.Scope) []content.Scope {
	all := []content.Scope{content.Public(), content.Mesh(), s}
	return all[:slices.Index(all, s)+1]
}

// complete checks that every pack of a manifest is there, and of the reused ones the
// same that was referred to: one may have been collected meanwhile, or replaced.
func complete(ctx context.Context, store bucket.Bucket, m pack.Manifest, known *index.Index) error {
	gone, err := pack.MissingPacks(ctx, store, m, known.Unchanged)
	return cmp.Or(err, goneFrom(gone))
}
