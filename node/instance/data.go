package instance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// runtime is how a kind of workload is run. What has failed is done again.
type runtime interface {
	// hydrate has here what the workload works on.
	hydrate(ctx context.Context, e entry) error
	// command is what is started.
	command(ctx context.Context, e entry) (process.Config, error)
	// look is nil once the workload is ready.
	look(ctx context.Context, e entry) error
	// part has the workload end in its own way, before it is told to by a signal.
	part(ctx context.Context, e entry) error
	// dehydrate has the origin have all that the workload has written.
	dehydrate(ctx context.Context, e entry) error
	// remove takes away what is here beside the folder; for good, what is at the origin, too.
	remove(ctx context.Context, e entry, forGood bool) error
}

func (i *hosted) runtime(e entry) runtime {
	if e.Spec.Runtime == terms.VM {
		return machine{i}
	}
	return folder{i}
}

// folder is a process that works in a folder, which is put away as a tree.
type folder struct{ *hosted }

func (i folder) command(ctx context.Context, e entry) (process.Config, error) {
	if err := errors.Join(i.show(ctx), i.configure(e)); err != nil {
		return process.Config{}, err
	}
	return i.program(e, e.Spec.Command)
}

func (folder) part(context.Context, entry) error { return nil }

// remove takes away what is at a target of its own; what is at the origin is for the mesh to collect.
func (i folder) remove(ctx context.Context, e entry, forGood bool) error {
	if err := i.hide(); err != nil || !forGood || e.Spec.Target == "" {
		return err
	}
	t, err := i.target(ctx, e, e.ID)
	if err != nil {
		return err
	}
	return t.Remove(ctx)
}

// hydrate has in the folder of data what was put away last, or the tree that the instance begins with, or nothing.
func (i folder) hydrate(ctx context.Context, e entry) error {
	if err := i.fill(ctx, e); err != nil {
		return err
	}
	return i.reachable(e)
}

func (i folder) fill(ctx context.Context, e entry) error {
	base, body, err := i.own(ctx)
	if err != nil {
		return err
	}
	if e.Spec.Target != "" { // before the workload has anything to put away there
		t, err := i.target(ctx, e, body.ID)
		if err == nil {
			err = t.Reach(ctx)
		}
		if err != nil {
			return err
		}
	}
	var root fetch.Root
	switch {
	case !body.Away.IsHole():
	case body.Head != nil:
		root = fetch.Root{Head: *body.Head, Lineage: body.Lineage, Envelope: base.Sealed, As: []content.Ref{{Kind: content.KindInstance, Name: i.name}}}
	case e.Spec.Tree() != "":
		if root, err = i.hub.cfg.Library.TreeRoot(ctx, e.Spec.Tree()); err != nil {
			return err
		}
	default:
		return i.begin(e)
	}
	i.Update(func(v *operations.View) { v.Total = root.Head.Root.Size })
	if err := ignore(os.Remove(i.path(stowedFile)), fs.ErrNotExist); err != nil {
		return err
	}
	if e.Spec.Lazy {
		return i.lay(ctx, root)
	}
	var said []string
	if !body.Away.IsHole() {
		said, err = i.bringBack(ctx, e, body)
	} else {
		said, err = i.hub.cfg.Library.Harvest(ctx, i, root, i.data())
	}
	for _, text := range said {
		i.hub.cfg.Log.Warn("not all of an instance's data can be had here", "name", i.name, "what", text)
	}
	if errors.Is(err, content.ErrNoSpace) { // that it has failed is to be logged on the same disk
		err = errors.Join(err, os.RemoveAll(i.data()))
	}
	return err
}

// begin makes an empty folder, of who is to work in it.
func (i folder) begin(e entry) error {
	if err := durable.MkdirAll(i.data(), 0o700); err != nil {
		return err
	}
	return process.Give(i.data(), e.Spec.User)
}

// reachable lets another user than the node's through to the data; what else is there has modes of its own.
func (i folder) reachable(e entry) error {
	if e.Spec.User == "" {
		return nil
	}
	for _, dir := range []string{i.dir, i.hub.cfg.Dir} {
		if err := os.Chmod(dir, 0o711); err != nil {
			return err
		}
	}
	for dir := filepath.Dir(i.hub.cfg.Dir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("%w: user %s can't get to %s through %s: chmod o+x that folder, or choose another with --instance-dir", content.ErrForbidden, e.Spec.User, i.data(), dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// dehydrate stores what the workload has, and has the record say so.
func (i folder) dehydrate(ctx context.Context, e entry) error {
	_, body, err := i.own(ctx) // before much is read and sent
	if err != nil {
		return err
	}
	if e.Spec.Target != "" {
		return i.putAway(ctx, e, body)
	}
	known, err := i.known(ctx)
	if err != nil {
		return err
	}
	stored, now, err := i.hub.cfg.Library.Stow(ctx, i, images.ToStow{
		Dir: i.data(), Scope: e.Spec.Scope(i.hub.cfg.Farm), Lineage: lineage(i.hub.cfg.Codec, body), Was: known,
	})
	if err != nil {
		return err
	}
	i.remember(now)
	root := rootOf(i.hub.cfg.Codec, catalog.Instance{Head: &stored.Head})
	return i.saved(ctx, root, func(body *catalog.Instance) {
		before, was := lineage(i.hub.cfg.Codec, *body), rootOf(i.hub.cfg.Codec, *body)
		if body.Head = &stored.Head; root != was { // one that has not changed is not behind itself
			body.Lineage = before
		}
	})
}

// remember keeps what files have become, for the next time.
func (i *hosted) remember(now images.Stowed) {
	if err := saveStowed(i.dir, now); err != nil { // a second try reads it all again
		i.hub.cfg.Log.Warn("what an instance's files have become is not remembered", "name", i.name, "err", err)
	}
}

// saved has the record say where what was put away is.
func (i *hosted) saved(ctx context.Context, root content.CID, change func(*catalog.Instance)) error {
	base, body, err := i.own(ctx)
	if err != nil {
		return err
	}
	now := i.hub.cfg.Now()
	change(&body)
	body.Saved = now.UnixMilli()
	if err := i.commit(ctx, base, body); err != nil {
		return err
	}
	return i.change(func(e *entry) error { e.Root, e.Saved = root, now; return nil })
}

// known is what the files had become when they were read last, of a folder that is there.
func (i folder) known(ctx context.Context) (images.Stowed, error) {
	was := loadStowed(i.dir)
	lent, err := i.lent()
	if err != nil || lent == nil {
		return was, err
	}
	if err := errors.Join(i.hide(), i.show(ctx)); err != nil { // anew: until then names of one file may have several numbers
		return nil, err
	}
	all, err := lent.Recall(ctx)
	if err == nil {
		maps.Copy(all, was)
	}
	return all, err
}

// lineage is that of what is put away behind what a record has.
func lineage(codec *content.Codec, body catalog.Instance) []content.CID {
	if body.Head == nil {
		return nil
	}
	all := slices.Concat([]content.CID{rootOf(codec, body)}, body.Lineage)
	return all[:min(len(all), content.LineageMax)]
}

// recall finds out what the files are that were just written, so that those which stay as they are need not be read when
// they are put away; or has here what the data show without having it.
func (i *hosted) recall(ctx context.Context) {
	lent, err := folder{i}.lent()
	if err == nil && lent != nil {
		err = lent.Fill(ctx)
	}
	if ctx.Err() != nil || lent != nil && err == nil {
		return
	}
	if err != nil {
		i.hub.cfg.Log.Warn("what an instance began as is not all here, and is brought in as it is read", "name", i.name, "err", err)
		return
	}
	if _, err := os.Stat(i.path(stowedFile)); err == nil {
		return
	}
	now, err := i.hub.cfg.Library.Recall(ctx, i.data())
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		err = saveStowed(i.dir, now)
	}
	if err != nil {
		i.hub.cfg.Log.Warn("the files of an instance will be read once more when they are put away", "name", i.name, "err", err)
	}
}
