package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/grangemesh/grange/node/volumes/moves"
	"github.com/grangemesh/grange/node/volumes/names"
	"github.com/grangemesh/grange/node/volumes/readers"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Calls between the nodes of a farm about volumes.
const (
	// CallPrefix is what the methods begin with.
	CallPrefix = "volume/"
	// takenMethod tells a node that a volume of its may be another's by now: it looks.
	takenMethod = CallPrefix + "taken"
	// attachMethod has a node attach a volume that was released for it. It is asked again until it says that it is done.
	attachMethod = CallPrefix + "attach"
)

// Answer answers another node of this farm.
func (v *Volumes) Answer(ctx context.Context, from trust.Identity, method string, body []byte) ([]byte, error) {
	if !from.Role.IsMember() || from.Farm != v.cfg.Farm {
		return nil, fmt.Errorf("call %.40q: %w", method, content.ErrNotFound)
	}
	switch method {
	case takenMethod:
		v.hearTaken(ctx, string(body))
		return nil, nil
	case names.SnapshotMethod:
		return names.AnswerSnapshot(ctx, body, func(name string) bool { return v.device(name) != nil }, v.Snapshot)
	case readers.Method:
		return readers.Answer(v.index, string(body)), nil
	case attachMethod:
		return v.moves.Answer(ctx, body, func(ctx context.Context, q moves.Request) (terms.View, error) {
			view, _, err := v.Put(ctx, q.Name, terms.Spec{Transport: q.Transport})
			if e, _ := v.index.Get(q.Name); err == nil && e.ID != q.ID {
				err = fmt.Errorf("volume %q: %w: another was made here while the origin was away", q.Name, content.ErrConflict)
			}
			return view, err
		})
	}
	return nil, fmt.Errorf("call %.40q: %w", method, content.ErrNotFound)
}

// hearTaken looks at the record of a volume of which a member says that it is another's.
func (v *Volumes) hearTaken(ctx context.Context, name string) {
	a := v.device(name)
	if a == nil || a.vol == nil {
		return
	}
	v.errands.Do(ctx, func(ctx context.Context) {
		if err := a.happen(ctx, right.Due{}); err != nil {
			v.cfg.Log.Debug("a volume may have been taken over", "volume", name, "err", err)
		}
	})
}

// tell says to who held a volume that it does not any more. Who can't be reached now is
// told later, until it has looked at the record by itself.
func (v *Volumes) tell(ctx context.Context, who trust.PublicKey, name string) {
	err := v.errands.Insist(ctx, right.SaidFor, func(ctx context.Context) error {
		_, err := v.cfg.Call(ctx, who, takenMethod, []byte(name))
		return err
	})
	if err != nil {
		v.cfg.Log.Warn("the node that a volume was taken over from can't be told yet; it stops when it is, or sees the record", "volume", name, "node", who, "err", err)
	}
}

// Move has another node of the farm, by its name or ID, attach a volume of this node. What was written goes to the bucket first;
// NBD clients that connect anew go on there, a disk must not be in use. Where the other does not attach it, this node has it again.
func (v *Volumes) Move(ctx context.Context, name, node string) (_ terms.View, err error) {
	defer v.turn(name)()
	defer terms.During(&err, "move volume %q", name)
	to, who, err := v.cfg.Member(ctx, node)
	if err != nil {
		return terms.View{}, err
	}
	e, ok := v.index.Get(name)
	a := v.device(name)
	switch {
	case !ok || e.Reader:
		return terms.View{}, v.names().Elsewhere(ctx, name)
	case to == v.cfg.Self:
		return v.Get(name)
	case a == nil || a.vol == nil:
		return terms.View{}, fmt.Errorf("%w: it is not served here: attach it there, or ask the node that has it by `grange volume ls --all`", content.ErrConflict)
	}
	if err := (readers.Farm{Call: v.cfg.Call}).MayMove(ctx, to, who, name); err != nil { // before anything is given up
		return terms.View{}, err
	}
	if err := a.upload(ctx); err != nil { // while it is served, and the record known
		return terms.View{}, fmt.Errorf("%w: not all that was written could be brought to the bucket: %w", content.ErrUnavailable, err)
	}
	err = v.leave(ctx, name, a.disk == nil)
	if v.device(name) != nil {
		return terms.View{}, err
	}
	if e, _ = v.index.Get(name); !e.Empty {
		return terms.View{}, v.takeBack(ctx, name, errors.Join(fmt.Errorf("%w: not all that was written could be brought to the bucket", content.ErrUnavailable), err))
	}
	call := func(ctx context.Context, body []byte) ([]byte, error) { return v.cfg.Call(ctx, to, attachMethod, body) }
	view, err := moves.Ask(ctx, call, moves.Request{Name: name, ID: e.ID, Transport: e.Transport})
	if err != nil {
		return view, v.takeBack(ctx, name, fmt.Errorf("%s did not attach it: %w", who, err))
	}
	_ = v.detached(e) // else the next start finds out
	return view, nil
}

// takeBack attaches a volume again that could not be moved, once it can.
func (v *Volumes) takeBack(ctx context.Context, name string, why error) error {
	e, _ := v.index.Get(name)
	if err := v.attach(context.WithoutCancel(ctx), e, terms.Spec{}); err != nil {
		return errors.Join(why, fmt.Errorf("nor did this node: %w", err))
	}
	return fmt.Errorf("%w; it is attached here again", why)
}
