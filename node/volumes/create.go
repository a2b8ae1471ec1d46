package volumes

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"syscall"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// create makes a volume. The record is committed before its folder gets its name and
// it is served, so that of two nodes that create one name one is told. After a crash
// before that the next start makes it a volume, and writes the record if that is not.
func (v *Volumes) create(ctx context.Context, name string, spec Spec) error {
	e, base, err := v.plan(ctx, name, spec)
	if err == nil {
		err = v.index.free(name)
	}
	if err != nil {
		return err
	}
	if err := v.nameIsFree(ctx, name); err != nil {
		return err
	}
	e.Committed, e.Attached = true, true
	if err := v.index.prepare(e); err != nil {
		return err
	}
	_, err = v.register(ctx, e, base)
	if errors.Is(err, content.ErrUnavailable) {
		e.Committed = false
		err = writeEntry(v.index.path(e)+halfMade, e)
	} else if err != nil {
		err = v.taken(ctx, err)
	}
	if err != nil {
		return errors.Join(err, v.index.giveUp(e))
	}
	if err := v.index.add(e); err != nil {
		return err
	}
	return v.attach(ctx, e)
}

// plan works out what the volume will be; nothing is made yet.
func (v *Volumes) plan(ctx context.Context, name string, spec Spec) (e entry, base *fetch.Root, err error) {
	e = entry{Name: name, Size: spec.Size, From: spec.From, Transport: spec.Transport, Durability: spec.Durability,
		ReadOnly: spec.ReadOnly, Epoch: 1, Created: v.cfg.Now()}
	rand.Read(e.ID[:])
	if spec.From == (content.Ref{}) {
		if e.Size == 0 {
			return e, nil, fmt.Errorf("%w: a blank volume needs a size", content.ErrInvalid)
		}
		return e, nil, nil
	}
	b, err := v.cfg.Library.Base(ctx, spec.From)
	if err != nil {
		return e, nil, err
	}
	e.Size = cmp.Or(e.Size, b.Head.Root.Size)
	if e.Size < b.Head.Root.Size {
		return e, nil, fmt.Errorf("%w: %s has %d bytes, and a volume of %d can't hold it", content.ErrInvalid, spec.From, b.Head.Root.Size, e.Size)
	}
	e.Head, err = b.Head.Encode(v.codec)
	return e, &b, err
}

// nameIsFree looks at the record first, so that a name that is taken costs nothing.
func (v *Volumes) nameIsFree(ctx context.Context, name string) error {
	r, body, err := v.record(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound), errors.Is(err, content.ErrUnavailable):
		return nil
	case err != nil:
		return err
	}
	return v.held(ctx, r, body)
}

// register writes the record of a new volume.
func (v *Volumes) register(ctx context.Context, e entry, base *fetch.Root) (catalog.Record, error) {
	body, err := v.body(e, base).Encode(v.codec)
	if err != nil {
		return catalog.Record{}, err
	}
	return v.cfg.Registry.Commit(ctx, content.KindVolume, e.Name, nil, body)
}

func (v *Volumes) body(e entry, base *fetch.Root) catalog.Volume {
	b := catalog.Volume{ID: e.ID, Size: e.Size, From: e.From, Policy: e.Durability, Epoch: e.Epoch, Holder: v.cfg.Self, State: catalog.Attached, ReadOnly: e.ReadOnly}
	if base != nil { // what a volume is made from may be for others too, the volume is its farm's
		b.Head = new(pack.Head)
		*b.Head = base.Head
		b.Head.Scope = content.Farm(v.cfg.Farm)
	}
	return b
}

// spaceError says what a full disk means to who makes something.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: the disk of the data folder is full: %w", content.ErrNoSpace, err)
	}
	return err
}
