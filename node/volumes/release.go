package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Detach stops serving a volume. What was written goes to the bucket, and the record is released,
// so that any node of the farm may attach it; where that can't be done the data stay on this node,
// and the volume this node's. One that is in use is content.ErrConflict, unless forced.
func (v *Volumes) Detach(ctx context.Context, name string, force bool) (_ terms.View, err error) {
	defer v.turn(name)()
	defer terms.During(&err, "detach volume %q", name)
	e, _ := v.index.Get(name)
	if err := v.detach(ctx, name, force); err != nil {
		return terms.View{}, err
	}
	if e.Reader { // nothing of it is left here
		return v.view(e), nil
	}
	return v.Get(name)
}

// detach is Detach in the volume's turn.
func (v *Volumes) detach(ctx context.Context, name string, force bool) error {
	e, ok := v.index.Get(name)
	if !ok {
		return v.names().Elsewhere(ctx, name)
	}
	err := v.leave(ctx, name, force)
	if v.device(name) == nil { // whatever went wrong: a restart must not serve it again
		err = errors.Join(err, v.detached(e))
	}
	return err
}

// leave is detach, after which a restart serves it again, if it is this node's or released then.
func (v *Volumes) leave(ctx context.Context, name string, force bool) error {
	return v.close(ctx, name, force, func(a *attached) error {
		if err := a.release(ctx); err != nil && !a.vol.Geometry().ReadOnly {
			v.cfg.Log.Info("a volume is detached, and stays this node's", "volume", name, "why", err)
		}
		return nil
	})
}

// release gives the volume up, if the bucket has all of it. Nobody writes to it any more.
func (a *attached) release(ctx context.Context) error {
	if _, _, st := a.record(); st.Stage == right.Unconfirmed {
		if err := a.happen(ctx, right.Due{}); err != nil {
			return err
		}
	}
	if _, _, st := a.record(); st.Stage != right.Serving {
		return fmt.Errorf("%w: its record can't be written now", content.ErrUnavailable)
	}
	err := a.upload(ctx)
	if err == nil { // a start that can't tell whether the record says so yet must not go on alone
		_, err = a.v.index.Change(a.Name(), func(e *index.Entry) { e.Leaving = true })
	}
	if err == nil {
		err = a.revise(ctx, func(body *catalog.Volume) error {
			body.State, body.Holders, body.DegradedSince = catalog.Released, nil, time.Time{} // the bucket has all
			return nil
		})
	}
	return err
}

// upload has all of the volume in the bucket, and if it can in one root.
func (a *attached) upload(ctx context.Context) error {
	if a.folds != nil {
		return a.folds.Upload(ctx)
	}
	if _, body, _ := a.record(); a.vol.End().Seq > body.Through().Seq {
		return fmt.Errorf("%w: %d bytes of its journal are on this disk alone", content.ErrUnavailable, a.vol.Stats().Dirty)
	}
	return nil
}
