package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/index"
)

// ImportTree publishes a directory or tar file under a name, as a tree, in the background. What can be known at once is
// refused at once.
func (im *Images) ImportTree(ctx context.Context, name string, req ImportRequest) (operations.View, error) {
	return im.importing(ctx, content.KindTree, name, req, im.plant)
}

func (im *Images) plant(ctx context.Context, op *operations.Operation, name string, req ImportRequest, old *version) error {
	work := workingIn(filepath.Join(im.cfg.Dir, TempDir))
	req.Temp, req.Except, req.Room = work.dir, im.cfg.Dir, work.room
	at, err := im.origin(req.gone)
	if err != nil {
		return fmt.Errorf("import %q: %w", name, err)
	}
	body, _, err := im.stow(ctx, op, req.Options, build.Config{Scope: req.Scope, Lineage: old.lineage()}, known{at: &at})
	if err != nil {
		return fmt.Errorf("import %q from %s: %w", name, req.Path, err)
	}
	if body.Source = filepath.Base(req.Path); filepath.Dir(req.Path) == work.dir {
		body.Source = "standard input"
	}
	return im.replace(ctx, content.KindTree, name, body, old)
}

// Stowed is what files had become when they were read last: those that have not changed since are not read again. By the
// keys of their segments.
type Stowed map[content.CID]tree.Segment

// ToStow is a folder that is to be stored: for whom, behind what, and what its files had become before.
type ToStow struct {
	Dir     string
	Scope   content.Scope
	Lineage []content.CID
	Was     Stowed
}

// Stow stores what is in a folder as a tree, whose record the caller writes; and returns what a record says of it, and what
// the files have become.
func (im *Images) Stow(ctx context.Context, op Updater, what ToStow) (catalog.Image, Stowed, error) {
	body, now, err := im.stow(ctx, op, convert.Options{Path: what.Dir, Format: convert.Dir}, build.Config{Scope: what.Scope, Lineage: what.Lineage}, known{was: what.Was})
	if err != nil {
		err = fmt.Errorf("store what is in %s: %w", what.Dir, err)
	}
	return body, now, err
}

// Recall reads what is in a folder, and returns what Stow would make of the files, as far as it came. Those that somebody
// changes meanwhile, or later, are not among what a Stow takes for unchanged.
func (im *Images) Recall(ctx context.Context, dir string) (Stowed, error) {
	now := Stowed{}
	files, err := convert.OpenFiles(ctx, convert.Options{Path: dir, Format: convert.Dir, Warn: func(string) {}, Note: func(string) {}})
	if err != nil {
		return now, err
	}
	w, err := tree.NewWriter(tree.Config{Codec: im.cfg.Codec, Add: func(ctx context.Context, _ uint64, _ []byte) error { return context.Cause(ctx) }, Note: func(key content.CID, s tree.Segment) { now[key] = s }})
	if err == nil {
		err = files.Learn(ctx, w)
	}
	return now, errors.Join(err, files.Close())
}

// known is what files had become before, and where; nil is the mesh's origin.
type known struct {
	was Stowed
	at  *place
}

// stow stores the tree of files, and returns what a record says of it, and what they have become.
func (im *Images) stow(ctx context.Context, op Updater, o convert.Options, cfg build.Config, before known) (body catalog.Image, now Stowed, err error) {
	if before.at == nil {
		origin, err := im.origin(nil)
		if err != nil {
			return body, nil, err
		}
		before.at = &origin
	}
	note, said := func(text string) { op.Update(func(v *operations.View) { v.Note = text }) }, []string{}
	o.Note, o.Warn = note, func(text string) { said = append(said, text) }
	ctx, end := context.WithCancel(ctx)
	defer end()
	files, err := convert.OpenFiles(ctx, o)
	if err != nil {
		return body, nil, err
	}
	defer files.Close()
	cfg.Kind, cfg.ChunkSize, now = content.RootTree, tree.ChunkSize, Stowed{}
	body, err = im.build(ctx, op, cfg, *before.at, func(b *build.Builder, known *index.Index) error {
		done := func(n int) { op.Update(func(v *operations.View) { v.Done += int64(n) }) }
		w, err := tree.NewWriter(tree.Config{
			Codec: im.cfg.Codec,
			Add: func(ctx context.Context, at uint64, raw []byte) error {
				done(len(raw))
				return errors.Join(op.Pass(ctx), b.Add(ctx, at, raw))
			},
			Known: func(key content.CID) (tree.Segment, bool) {
				s, ok := before.was[key]
				return s, ok && !slices.ContainsFunc(s.Pieces, func(p tree.Piece) bool {
					at, there := known.Locate(ctx, p.CID)
					return !there || int(at.Raw) != p.Length
				})
			},
			Keep: func(ctx context.Context, at uint64, p tree.Piece) error {
				where, _ := known.Locate(ctx, p.CID)
				done(p.Length)
				op.Update(func(v *operations.View) { v.Bytes["kept"] += int64(p.Length) })
				return b.Keep(ctx, at, pack.Extent{CID: p.CID, Location: where})
			},
			Note: func(key content.CID, s tree.Segment) { now[key] = s },
		})
		if err == nil {
			_, err = files.Plant(ctx, w)
		}
		return err
	})
	note(strings.Join(said, "\n"))
	return body, now, err
}

// TreeRoot is the root that the name of a tree stands for.
func (im *Images) TreeRoot(ctx context.Context, name string) (fetch.Root, error) {
	k, err := im.cfg.Names.Lookup(ctx, content.KindTree, name, true)
	if err == nil && k.Head.Root.Kind != content.RootTree {
		err = fmt.Errorf("%q: %w: it is no tree of files", name, content.OtherKind)
	}
	if err != nil {
		return fetch.Root{}, err
	}
	return RootOf(k), nil
}

// Lent is a tree that is read before all of it is here.
type Lent struct {
	image *fetch.Image
	codec *content.Codec

	opening sync.Mutex // held while it is opened
	tree    *tree.Tree // nil before
}

// Lend has a tree read that the caller knows the root of.
func (im *Images) Lend(root fetch.Root) (*Lent, error) {
	m, err := im.cfg.Fetcher.Learn(root)
	return &Lent{image: m, codec: im.cfg.Codec}, err
}

// ReadChunk implements tree.ReadChunk, for somebody who waits.
func (l *Lent) ReadChunk(ctx context.Context, index uint64, off int, p []byte) error {
	if index >= l.image.Root().Count || off < 0 || len(p) > tree.ChunkSize-off {
		return fmt.Errorf("%w: %d bytes from %d of chunk %d, in a tree of %d", content.ErrInvalid, len(p), off, index, l.image.Root().Count)
	}
	return l.image.ReadChunk(ctx, index, off, p)
}

func (l *Lent) open(ctx context.Context) (*tree.Tree, error) {
	l.opening.Lock()
	defer l.opening.Unlock()
	if l.tree != nil {
		return l.tree, nil
	}
	l.image.Prepare(ctx) // so that the first read knows whom to ask
	t, err := tree.Open(ctx, l.codec, l.image.Root(), l.ReadChunk)
	if err == nil {
		l.tree = t
	}
	return t, err
}

// ReadStream implements tree.ReadStream.
func (l *Lent) ReadStream(ctx context.Context, p []byte, at int64) error {
	t, err := l.open(ctx)
	if err != nil {
		return err
	}
	return t.ReadStream(ctx, p, at)
}

// Top has a folder that is empty be as the tree's top is, but for what is in that.
func (l *Lent) Top(ctx context.Context, dir string) error {
	t, err := l.open(ctx)
	if err == nil {
		err = convert.HarvestTop(ctx, t, dir)
	}
	return err
}

// Recall returns what Stow would make of the tree's files where they are mounted, and unchanged.
func (l *Lent) Recall(ctx context.Context) (Stowed, error) {
	t, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	now := Stowed{}
	return now, t.Segments(ctx, tree.Cuts{
		Stamp: func(f tree.File, number uint64) []byte {
			return convert.StampOf(number, f.Changed().UnixNano(), f.Changed().UnixNano())
		},
		CID: l.image.CID, Note: func(key content.CID, s tree.Segment) { now[key] = s },
	})
}

// Fill has here what is not yet.
func (l *Lent) Fill(ctx context.Context) error { return l.image.Warm(ctx, nil) }

// OpenTree opens the tree that a name stands for, and says which root that is.
func (im *Images) OpenTree(ctx context.Context, name string) (*tree.Tree, pack.Head, error) {
	root, err := im.TreeRoot(ctx, name)
	if err != nil {
		return nil, pack.Head{}, err
	}
	lent, err := im.Lend(root)
	if err != nil {
		return nil, pack.Head{}, err
	}
	t, err := lent.open(ctx)
	if err != nil {
		return nil, pack.Head{}, fmt.Errorf("tree %q: %w", name, err)
	}
	return t, root.Head, nil
}

// ExportTree writes a tree into a folder on this host, in the background: one that is not there, or empty. Another is
// made to be as the tree is if it is to be replaced. One that another export writes to, or to a part of it, is ErrConflict.
func (im *Images) ExportTree(name, dir string, replace bool) (v operations.View, err error) {
	leave, err := im.exports.enter(dir)
	if err == nil {
		if err = im.mayFill(dir, replace); err != nil {
			leave()
		}
	}
	if err != nil {
		return v, fmt.Errorf("export %q to %q: %w", name, dir, err)
	}
	v, err = im.begin("export", name, func(ctx context.Context, op *operations.Operation) error {
		defer leave()
		k, err := im.target(ctx, op, name, func(i Image, _ int64) int64 { return i.Size })
		if err != nil {
			return err
		}
		said, err := im.Harvest(ctx, op, RootOf(k), dir)
		if err != nil {
			return fmt.Errorf("export %q to %s: %w", name, dir, err)
		}
		op.Update(func(v *operations.View) { v.Done, v.Note = v.Total, strings.Join(said, "\n") })
		return nil
	})
	if err != nil {
		leave()
	}
	return v, err
}

// folders are those that exports write to.
type folders struct {
	mu  sync.Mutex // guards what follows
	all []string
}

// enter has nobody else write to a folder, nor to what it is in or what is in it, until leave. The folder need not be there.
func (f *folders) enter(dir string) (leave func(), err error) {
	in, err := filepath.EvalSymlinks(dir)
	if err != nil {
		if in, err = filepath.EvalSymlinks(filepath.Dir(dir)); err != nil {
			return nil, fmt.Errorf("%w: %w", content.ErrInvalid, bare(err))
		}
		in = filepath.Join(in, filepath.Base(dir))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, other := range f.all {
		if within(in, other) || within(other, in) {
			return nil, fmt.Errorf("%w: an export writes to %s; wait for it or cancel it", content.Running, other)
		}
	}
	f.all = append(f.all, in)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.all = slices.DeleteFunc(f.all, func(dir string) bool { return dir == in })
	}, nil
}

// within reports whether a path is dir or below it; both have no links in them.
func within(path, dir string) bool {
	way, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(way)
}

// mayFill fails for a folder that is to stay as it is: ErrExists for one that is not empty, unless it is to be
// replaced.
func (im *Images) mayFill(dir string, replace bool) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
		return fmt.Errorf("%w: want an absolute path of a folder for the tree alone", content.ErrInvalid)
	}
	in, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(dir)) // in which it is made
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", content.ErrInvalid, bare(err))
	case im.isOwn(dir), len(in) > 0 && im.isOwn(filepath.Join(dir, in[0].Name())):
		return fmt.Errorf("%w: it is in this node's own data folder", content.ErrInvalid)
	case im.holdsOwn(dir):
		return fmt.Errorf("%w: this node's own data folder is in it", content.ErrInvalid)
	case len(in) > 0 && !replace:
		return fmt.Errorf("%w, and is not empty; give --force to have in it what the tree has, and nothing else", content.ErrExists)
	case len(in) > 0:
		return HasNoMounts(dir)
	}
	return nil
}

// HasNoMounts fails with content.InUse for a folder in which something is mounted: that can't be removed, nor is what is there
// the folder's.
func HasNoMounts(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // elsewhere than on Linux
		return err
	}
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			if at := plain.Replace(fields[4]); at != dir && within(at, dir) {
				return fmt.Errorf("%w: something is mounted at %s; unmount it first", content.InUse, at)
			}
		}
	}
	return nil
}

// holdsOwn reports whether this node's own data are in a folder, which need not be there.
func (im *Images) holdsOwn(dir string) bool {
	own, err := filepath.EvalSymlinks(im.cfg.Dir)
	at, failed := filepath.EvalSymlinks(dir)
	if err != nil || failed != nil {
		return err != nil || !errors.Is(failed, fs.ErrNotExist)
	}
	return within(own, at)
}

// passing reads while the work may go on.
func passing(op Updater, read tree.ReadChunk) tree.ReadChunk {
	return func(ctx context.Context, index uint64, off int, p []byte) error {
		if err := op.Pass(ctx); err != nil {
			return err
		}
		return read(ctx, index, off, p)
	}
}

// Harvest writes the tree of a root into a folder, which it makes if it is not there, and has the rest of it brought in
// meanwhile. It returns what can't be written.
func (im *Images) Harvest(ctx context.Context, op Updater, root fetch.Root, dir string) (said []string, err error) {
	m, err := im.cfg.Fetcher.Learn(root)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, bare(err)
	}
	m.Prepare(ctx) // so that the first read knows whom to ask
	ctx, end := context.WithCancel(ctx)
	warmed := make(chan error, 1)
	go func() {
		warmed <- m.Warm(ctx, func(s fetch.Source, n int) {
			op.Update(func(v *operations.View) { v.Done += int64(n); v.Bytes[s.String()] += int64(n) })
			_ = op.Pass(ctx) // no more is asked for meanwhile
		})
	}()
	t, err := tree.Open(ctx, im.cfg.Codec, m.Root(), passing(op, m.ReadInTurn))
	if err == nil {
		err = convert.Harvest(ctx, t, dir, func(text string) { said = append(said, text) })
	}
	end()
	<-warmed // what it could not bring in was read by who needed it, or failed there
	return said, err
}

// PublishTree gives a name to a tree that Stow has stored, in place of the tree that it stood for.
func (im *Images) PublishTree(ctx context.Context, name string, body catalog.Image) error {
	old, err := im.previous(ctx, content.KindTree, name, true)
	if err != nil {
		return err
	}
	body.Lineage = old.lineage()
	return im.replace(ctx, content.KindTree, name, body, old)
}
