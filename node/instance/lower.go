package instance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/process"
	"github.com/grangemesh/grange/node/mounts"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/content/tree"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// lowerMark is the variable by which a process is known to show what an instance began as.
	lowerMark = "GRANGE_INSTANCE_LOWER"
	// shownWithin is how long that may take, from the first of its reads on, and shownEvery how often it is looked.
	shownWithin, shownEvery = 5 * time.Minute, 10 * time.Millisecond
)

// base is the root that the data of an instance began as, and show below what was written since.
type base struct {
	_        struct{} `cbor:",toarray"`
	Head     pack.Head
	Lineage  []content.CID
	Envelope []byte
	As       []name
}

// name is one that it is read by: a content.Ref of any kind.
type name struct {
	_    struct{} `cbor:",toarray"`
	Kind content.Kind
	Name string
}

func baseOf(root fetch.Root) base {
	b := base{Head: root.Head, Lineage: root.Lineage, Envelope: root.Envelope}
	for _, ref := range root.As {
		b.As = append(b.As, name{Kind: ref.Kind, Name: ref.Name})
	}
	return b
}

func (b base) root() fetch.Root {
	root := fetch.Root{Head: b.Head, Lineage: b.Lineage, Envelope: b.Envelope}
	for _, n := range b.As {
		root.As = append(root.As, content.Ref{Kind: n.Kind, Name: n.Name})
	}
	return root
}

// loadBase reads the base of an instance; content.ErrNotFound where all of its data are in the folder.
func loadBase(dir string) (b base, err error) {
	body, err := loadSummed(filepath.Join(dir, baseFile))
	if errors.Is(err, fs.ErrNotExist) {
		return b, content.ErrNotFound
	}
	if err == nil {
		err = content.NewCodec().Unmarshal(body, &b)
	}
	if err != nil {
		err = fmt.Errorf("what an instance began as: %w", err)
	}
	return b, err
}

// Show shows what the data of an instance began as, in its folder, until that is unmounted; read and stream ask the node. It is
// for a process that outlives the node, as the workload does.
func Show(ctx context.Context, dir string, read tree.ReadChunk, stream tree.ReadStream, log *slog.Logger) error {
	b, err := loadBase(dir)
	if err != nil {
		return err
	}
	t, err := tree.Open(ctx, content.NewCodec(), b.Head.Root, read)
	if err != nil {
		return err
	}
	return mounts.Serve(t.Over(stream), "grange", filepath.Join(dir, lowerDir), log)
}

// Lower is what the data of an instance of this node began as, if that need not be here; content.ErrNotFound else.
func (h *Hub) Lower(name string) (*images.Lent, error) {
	i, err := h.here(name)
	if err != nil {
		return nil, err
	}
	lent, err := folder{i}.lent()
	if err == nil && lent == nil {
		err = fmt.Errorf("%w: all of its data are in its folder", content.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("instance %q: %w", name, err)
	}
	return lent, nil
}

// Bases yields what the data of instances began as that need not be here, by name.
func (h *Hub) Bases(yield func(name string, head pack.Head) bool) {
	for _, i := range h.snapshot() {
		if b, err := loadBase(i.dir); err == nil && !yield(i.name, b.Head) {
			return
		}
	}
}

// lent is what the data began as; nil where all of them are in the folder.
func (i folder) lent() (*images.Lent, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.lower != nil {
		return i.lower, nil
	}
	b, err := loadBase(i.dir)
	if errors.Is(err, content.ErrNotFound) {
		if _, err := os.Lstat(filepath.Join(i.dir, upperDir)); err == nil { // what data shows alone is not all: it is not to be put away
			return nil, fmt.Errorf("what instance %q began as: %w: %s is gone; what was written since is in %s", i.name, content.ErrCorrupt, filepath.Join(i.dir, baseFile), filepath.Join(i.dir, upperDir))
		}
		return nil, nil
	}
	if err == nil {
		i.lower, err = i.hub.cfg.Library.Lend(b.root())
	}
	return i.lower, err
}

// lay has the data be a tree, of which nothing need be here; nothing was written yet.
func (i folder) lay(ctx context.Context, root fetch.Root) error {
	if err := i.hide(); err != nil { // what an earlier try has left
		return err
	}
	upper := filepath.Join(i.dir, upperDir)
	for _, dir := range []string{upper, filepath.Join(i.dir, workDir)} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{upper, filepath.Join(i.dir, workDir), filepath.Join(i.dir, lowerDir), i.data()} {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if len(i.hub.cfg.Lower) == 0 {
		return fmt.Errorf("lazy: %w: this node is not run by a program that can show data that are not here", errors.ErrUnsupported)
	}
	lent, err := i.hub.cfg.Library.Lend(root)
	if err == nil {
		err = lent.Top(ctx, upper) // the kernel takes the top's attributes from there
	}
	if err != nil {
		return err
	}
	body, err := i.hub.cfg.Codec.Marshal(baseOf(root))
	if err == nil {
		err = saveSummed(filepath.Join(i.dir, baseFile), body)
	}
	if err == nil {
		err = durable.SyncDir(i.dir)
	}
	if err != nil {
		return err
	}
	return i.show(ctx)
}

// show has the data be seen, unless they are, or are in the folder.
func (i folder) show(ctx context.Context) error {
	lent, err := i.lent()
	if err != nil || lent == nil {
		return err
	}
	lower := filepath.Join(i.dir, lowerDir)
	if mounts.IsOverlaid(i.data()) && mounts.IsServed(lower) {
		return nil
	}
	if err := i.hide(); err != nil {
		return err
	}
	p, err := process.Start(process.Config{
		Command: append(i.hub.cfg.Lower[:len(i.hub.cfg.Lower):len(i.hub.cfg.Lower)], i.name, i.dir), Dir: i.hub.cfg.Dir, Env: []string{i.lowerMark()}, Log: filepath.Join(i.dir, lowerLog),
	})
	if err != nil {
		return err
	}
	err = i.served(ctx, p, lower)
	if err == nil {
		err = mounts.Overlay(i.data(), lower, filepath.Join(i.dir, upperDir), filepath.Join(i.dir, workDir))
	}
	i.hub.beside(func(ctx context.Context) { // it ends when it is unmounted, or goes on without this node
		_ = p.Wait(ctx)
		_ = p.Close()
	})
	if err != nil {
		err = errors.Join(fmt.Errorf("show what it began as, see %s: %w", filepath.Join(i.dir, lowerLog), err), i.hide())
	}
	return err
}

// served returns once p shows the tree.
func (i folder) served(ctx context.Context, p *process.Process, lower string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, shownWithin, errLate)
	defer cancel()
	for tick := time.Tick(shownEvery); ; {
		if mounts.IsServed(lower) {
			return nil
		}
		if p.HasEnded() {
			return errEarly
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (i folder) lowerMark() string { return lowerMark + "=" + i.dir }

// hide has nothing shown any more of what the data began as. Nobody works with them.
func (i folder) hide() error {
	i.mu.Lock()
	i.lower = nil // the next life may begin as something else
	i.mu.Unlock()
	if _, err := os.Lstat(filepath.Join(i.dir, lowerDir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := mounts.Detach(i.data())
	if err == nil {
		err = mounts.Detach(filepath.Join(i.dir, lowerDir))
	}
	if err == nil {
		err = process.Sweep(i.lowerMark(), "")
	}
	return err
}
