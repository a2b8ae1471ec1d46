package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// create makes a volume. The record is committed before its folder gets its name and it is served, so that of two nodes that
// create one name one is told. After a crash before that the next start makes it a volume, and writes the record if that is
// not. gone is the record of the name's last deletion, zero if it had none; where nobody could say whether the name is free
// nothing is sent, so that what is here is known to be all there is.
func (v *Volumes) create(ctx context.Context, name string, spec terms.Spec, gone catalog.Record, free bool) error {
	e, from, err := v.plan(ctx, name, spec)
	defer from.End()
	if err == nil {
		err = v.index.Free(name)
	}
	if err != nil {
		return err
	}
	e.Epoch = gone.Version + 1 // no record of the name had a later one
	var tried []right.Stamp
	if free {
		tried = append(tried, right.StampOf(e.Volume))
	}
	if e.Adopted = len(from.Segments) > 0; !e.Adopted { // else a start gives it up until all of them are there
		e.Tried = tried
	}
	if err := v.index.Prepare(e); err != nil {
		return err
	}
	if e.Adopted {
		err = journal.Adopt(v.index.HalfMade(e), e.ID, from.Segments, v.cfg.At)
		if e.Adopted, e.Tried = false, tried; err == nil {
			err = v.index.Rewrite(e)
		}
		if err != nil {
			return errors.Join(err, v.index.GiveUp(e))
		}
	}
	var r catalog.Record
	if err = content.ErrUnavailable; free {
		r, err = v.records().Register(ctx, name, gone, e.Volume)
	}
	switch {
	case err == nil:
		e.Committed, e.Tried = true, nil
		err = v.index.Restate(e)
	case errors.Is(err, content.ErrUnavailable):
		err = nil
	default:
		err = v.names().Taken(ctx, err)
	}
	if err != nil {
		return errors.Join(err, v.index.GiveUp(e))
	}
	if err := v.index.Add(e); err != nil {
		return err
	}
	return v.serveNew(ctx, e, r)
}

// serveNew serves a volume that was made just now, with its record if it has one.
func (v *Volumes) serveNew(ctx context.Context, e index.Entry, r catalog.Record) error {
	a := v.newAttached(e, terms.Spec{})
	if e.Committed {
		a.right.Stage, a.base, a.gaps, a.asked = right.Serving, &r, v.pulse.Gaps(), e.Created
	}
	a.admit()
	if a.err = a.serve(ctx); a.err == nil {
		a.err = a.present(ctx)
	}
	return a.settled(&attached{})
}

// plan works out what the volume will be, and what it begins with; nothing is made yet.
func (v *Volumes) plan(ctx context.Context, name string, spec terms.Spec) (e index.Entry, from moment.Parent, err error) {
	e = index.Entry{Name: name, Transport: spec.Transport, Created: v.cfg.Now(), Attached: true, Volume: catalog.Volume{
		ID: spec.NewID(), Size: spec.Size, From: spec.From, Incarnation: v.incarnation, Holder: v.cfg.Self, State: catalog.Attached,
		Policy: catalog.PolicyLocal, ReadOnly: spec.ReadOnly,
	}}
	err = spec.Change(&e.Volume)
	switch blank := spec.From == (content.Ref{}); {
	case err != nil, blank && e.Size != 0:
		return e, from, err
	case blank:
		return e, from, fmt.Errorf("%w: a blank volume needs a size", content.ErrInvalid)
	case spec.From.Kind != content.KindImage:
		if from, err = v.parentOf(ctx, spec.From); err == nil {
			err = from.Begins(&e)
		}
		return e, from, err
	}
	b, err := v.cfg.Library.Base(ctx, spec.From)
	if err == nil {
		err = moment.Fits(&e, b.Head.Root.Size)
	}
	if err == nil {
		e.Made, err = b.Head.Encode(v.codec)
	}
	e.Head, e.Lineage = &b.Head, b.Lineage
	e.Head.Scope = content.Farm(v.cfg.Farm) // what it is made from may be for others too, the volume is its farm's
	return e, from, err
}
