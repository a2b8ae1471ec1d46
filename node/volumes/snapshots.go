package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Snapshot names the volume's state of now. It is instant, and durable later, or before
// it returns where the spec says so. The volume has to be attached to a node that answers.
func (v *Volumes) Snapshot(ctx context.Context, name string, spec terms.SnapshotSpec) (_ terms.SnapshotView, err error) {
	defer terms.During(&err, "snapshot of volume %q", name)
	a := v.device(name)
	if e, _ := v.index.Get(name); a == nil || e.Reader {
		return v.names().Snapshot(ctx, name, spec)
	}
	if a.folds == nil {
		return terms.SnapshotView{}, fmt.Errorf("%w: it is not attached for writing here, or this node has no origin", content.ErrConflict)
	}
	body, err := a.snapshot(ctx, spec.Label)
	if err != nil {
		return terms.SnapshotView{}, err
	}
	if spec.Wait == terms.Durable && !body.Durable {
		if err := v.Settle(ctx, body.Ref().RecordName()); err != nil {
			return terms.SnapshotView{}, fmt.Errorf("%s was made, and is not durable yet: %w", body.Ref(), err)
		}
		return v.FindSnapshot(ctx, body.Ref().RecordName())
	}
	return terms.OfSnapshot(v.codec, body), nil
}

// share seals the volume and has its record say that others may name what is up to there. The place is kept.
func (a *attached) share(ctx context.Context, change func(*catalog.Volume)) (content.Position, catalog.Volume, error) {
	tailed := a.tails() != nil
	at, err := a.folds.Seal(ctx)
	if err != nil {
		return at, catalog.Volume{}, err
	}
	var now catalog.Volume
	err = a.revise(ctx, func(body *catalog.Volume) error {
		if body.Policy == catalog.PolicyOrigin && !tailed {
			return fmt.Errorf("%w: its record could not be read until now; try again", content.ErrUnavailable)
		}
		change(body)
		body.Shared = max(body.Shared, at.Seq)
		now = *body
		return nil
	})
	if err != nil {
		a.vol.Release(at)
	}
	return at, now, err
}

// snapshot makes one. Its place is noted on this disk before its record says that it is
// there; one without a record is given up by the next fold, which waits until this is done.
func (a *attached) snapshot(ctx context.Context, label string) (body catalog.Snapshot, err error) {
	a.placing.Lock()
	defer a.placing.Unlock()
	for taken := true; taken; taken = errors.Is(err, content.ErrExists) { // by a volume that had the name before
		if body, err = a.place(ctx, label); err == nil {
			err = a.v.records().PutSnapshot(ctx, nil, body)
		}
	}
	return body, err
}

// place gives a snapshot its place, and returns what its record is to say; with placing.
func (a *attached) place(ctx context.Context, label string) (body catalog.Snapshot, err error) {
	at, now, err := a.share(ctx, func(body *catalog.Volume) { body.Snapshots++ })
	if err != nil {
		return body, err
	}
	body = catalog.Snapshot{
		Volume: a.Name(), Number: now.Snapshots, ID: now.ID, Label: label, Size: now.Size, Epoch: now.Epoch, Folded: now.Folded,
		At: at, Durable: now.Through() == at, Parent: now.From, Holder: a.v.cfg.Self, Created: a.v.cfg.Now(), FsUsed: now.FsUsed,
	}
	if !body.Durable {
		_, err = a.v.index.Change(body.Volume, func(e *index.Entry) {
			e.Waiting = append(slices.Clone(e.Waiting), index.Waiting{Number: body.Number, At: body.At, Size: body.Size})
		})
	}
	if err != nil || body.Durable {
		a.vol.Release(at)
	}
	return body, err
}

// Settle returns when a snapshot is durable, and makes haste with it.
func (v *Volumes) Settle(ctx context.Context, id string) error {
	_, body, err := v.records().Snapshot(ctx, id)
	if err != nil || body.Durable {
		return err
	}
	a := v.device(body.Volume)
	if body.Holder != v.cfg.Self || a == nil || a.folds == nil {
		return fmt.Errorf("snapshot %s: %w: %s has what the bucket lacks of it: attach the volume there", id, content.ErrConflict, v.cfg.Who(body.Holder))
	}
	if err := a.folds.Run(ctx, fold.Safe); err != nil {
		return fmt.Errorf("snapshot %s: %w", id, err)
	}
	if _, body, err = v.records().Snapshot(ctx, id); err == nil && !body.Durable {
		err = fmt.Errorf("snapshot %s: %w: the node does not know its place in the journal any more", id, content.ErrConflict)
	}
	return err
}

// RemoveSnapshot deletes a snapshot; absent is success. What forks have of it stays. One
// that its volume is being rolled back to is content.ErrConflict.
func (v *Volumes) RemoveSnapshot(ctx context.Context, id string) error {
	body, err := v.records().RemoveSnapshot(ctx, id, content.VolumeID{})
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	v.orphans.Removed(ctx, body)
	return v.forgetWaiting(body)
}

// forgetWaiting gives the place of a snapshot back that is not needed any more.
func (v *Volumes) forgetWaiting(body catalog.Snapshot) error {
	w := index.Waiting{Number: body.Number, At: body.At, Size: body.Size}
	e, here := v.index.Get(body.Volume)
	if !here || e.ID != body.ID || !slices.Contains(e.Waiting, w) {
		return nil
	}
	err := v.index.Reached(body.Volume, w)
	if a := v.device(body.Volume); err == nil && a != nil && a.vol != nil {
		a.vol.Release(w.At)
	}
	return err
}
