package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Rollback makes a volume what it was at a snapshot of it, which becomes durable before: what differs is written anew, so that its
// journal only ever goes on, and the snapshots since stay. Nobody may have it open. Its record says so until that is done, and
// whoever serves the volume completes it before anybody reads: after a failure, a crash, or a takeover by another node.
func (v *Volumes) Rollback(ctx context.Context, name, id string) (_ terms.View, err error) {
	defer v.turn(name)()
	defer terms.During(&err, "roll volume %q back to %s", name, id)
	number, err := v.mayRoll(ctx, name, id)
	if err != nil {
		return terms.View{}, err
	}
	err = v.close(ctx, name, false, func(a *attached) error { return a.rollTo(ctx, id, number) })
	if e, here := v.index.Get(name); here && v.device(name) == nil {
		err = errors.Join(err, v.attach(ctx, e, terms.Spec{}))
	}
	if err != nil {
		return terms.View{}, err
	}
	return v.Get(name)
}

// mayRoll returns the number of a snapshot that a volume can be rolled back to.
func (v *Volumes) mayRoll(ctx context.Context, name, id string) (uint64, error) {
	a, err := v.served(ctx, name)
	if err != nil {
		return 0, err
	}
	_, body, err := v.records().Snapshot(ctx, id)
	_, now, _ := a.record()
	switch {
	case err != nil:
		return 0, err
	case body.ID != now.ID || body.Orphan:
		return 0, fmt.Errorf("%w: it is a snapshot of another volume, or an orphan: make a new one, --from %s", content.ErrConflict, body.Ref())
	case a.folds == nil:
		return 0, fmt.Errorf("%w: it is not attached for writing here, or this node has no origin", content.ErrConflict)
	case a.disk != nil:
		return 0, fmt.Errorf("%w: it is a block device, whose readers remember what they have read: attach it over NBD first", content.Attached)
	case !body.Durable:
		err = v.Settle(ctx, id)
	}
	return body.Number, err
}

// rollTo has the record of a volume that nobody uses say that it is being rolled back. That it may is noted before: where nobody
// can tell whether the record says so, what it was is not served, as what is written to that would go once the record is read.
func (a *attached) rollTo(ctx context.Context, id string, number uint64) error {
	err := a.revise(ctx, func(body *catalog.Volume) error {
		body.Rolling = number
		_, err := a.v.index.Change(a.Name(), func(e *index.Entry) { e.Rolling = number })
		return err
	})
	if err == nil {
		err = a.v.records().Hold(ctx, id)
	}
	if errors.Is(err, content.ErrNotFound) {
		err = errors.Join(err, a.rolled(ctx))
	}
	return err
}

func (a *attached) rolled(ctx context.Context) error {
	return a.revise(ctx, func(body *catalog.Volume) error { body.Rolling = 0; return nil })
}

// roll writes what differs from the snapshot that the volume is being rolled back to, as its
// record says for sure, and is done when that says no more that it is.
func (a *attached) roll(ctx context.Context, e index.Entry) (err error) {
	_, _, st := a.record()
	switch {
	case a.folds == nil:
		return fmt.Errorf("%w: it is being rolled back to %s@%d: attach it for writing", content.ErrUnavailable, e.Name, e.Rolling)
	case st.Stage != right.Serving:
		return fmt.Errorf("%w: whether it is rolled back to %s@%d already, still, or not at all can't be told while the origin is away", content.ErrUnavailable, e.Name, e.Rolling)
	}
	ref := content.Ref{Kind: content.KindSnapshot, Name: e.Name, Seq: e.Rolling}
	defer terms.During(&err, "roll it back to %s, as was asked for", ref)
	if err = a.v.records().Hold(ctx, ref.RecordName()); errors.Is(err, content.ErrNotFound) { // it went before anything was written
		return a.rolled(ctx)
	}
	if k, _ := catalog.PolicyHolders(e.Policy); k > 0 && err == nil { // who can't go on with the journal begins where the bucket ends, and nobody else folds it now
		err = a.folds.Run(ctx, fold.Safe)
	}
	if err != nil {
		return err
	}
	was, err := a.v.momentOfSnapshot(ctx, ref.RecordName(), a)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, was.Close()) }()
	now, err := a.v.momentOfVolume(ctx, content.Ref{Kind: content.KindVolume, Name: e.Name}, a)
	if err == nil {
		err = errors.Join(moment.Pair{A: now, B: was, Nodes: a.v.bucket().Nodes}.Restore(ctx), now.Close())
	}
	if err == nil { // a fold may have brought a part of it, by now or of an attempt before
		err = a.folds.Run(ctx, fold.Safe)
	}
	if err == nil {
		err = a.rolled(ctx)
	}
	return err
}
