package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/origin/content"
)

// Rollback makes a volume what it was at a snapshot of it: what differs is written anew,
// so that its journal only ever goes on, and the snapshots since stay. Nobody may have it
// open. What a crash cuts short the next attach completes, before anybody reads it.
func (v *Volumes) Rollback(ctx context.Context, name, id string) (View, error) {
	defer v.turn(name)()
	a, err := v.served(ctx, name)
	if err == nil {
		err = v.mayRoll(ctx, a, id)
	}
	if err == nil {
		_, err = v.index.Change(name, func(e *index.Entry) { e.Rolling = id })
	}
	if err == nil {
		err = a.roll(ctx, id)
	}
	if err != nil {
		return View{}, fmt.Errorf("roll volume %q back to %s: %w", name, id, err)
	}
	return v.Get(name)
}

func (v *Volumes) mayRoll(ctx context.Context, a *attached, id string) error {
	_, body, err := v.records().Snapshot(ctx, id)
	_, now, _ := a.record()
	switch {
	case err != nil:
		return err
	case body.ID != now.ID:
		return fmt.Errorf("%w: it is a snapshot of another volume: make a new one, --from %s", content.ErrConflict, body.Ref())
	case a.folds == nil:
		return fmt.Errorf("%w: it is not attached for writing here, or this node has no origin", content.ErrConflict)
	case a.disk != nil:
		return fmt.Errorf("%w: it is a block device, whose readers remember what they have read: attach it over NBD first", content.Attached)
	}
	return v.doors.Unused(ctx, a.Name())
}

// roll writes what differs from a snapshot, and is done when it has all of that.
func (a *attached) roll(ctx context.Context, id string) (err error) {
	was, err := a.v.momentOfSnapshot(ctx, id, a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, was.Close()) }()
	now, err := a.v.momentOfVolume(ctx, content.Ref{Kind: content.KindVolume, Name: a.Name()}, a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, now.Close()) }()
	if err = moment.Restore(ctx, a.v.nodes, now, was); err == nil {
		_, err = a.v.index.Change(a.Name(), func(e *index.Entry) { e.Rolling = "" })
	}
	return err
}
