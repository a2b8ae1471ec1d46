package volumes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// keepTrying registers volumes that were made while the origin was away, serves those that could not
// be, and stops those that were taken. A slow origin keeps none from being served, nor one another.
func (v *Volumes) keepTrying(ctx context.Context, due *right.Looks) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return v.keepOwned(ctx, due) })
	group.Go(func() error { return v.keepFolding(ctx) })
	group.Go(func() error { return v.errands.Run(ctx) })
	group.Go(func() error { return v.keepMending(ctx) })
	return group.Wait()
}

// keepMending commits and serves those that are to be and could not, each for itself: one
// that is stuck keeps none of the others waiting.
func (v *Volumes) keepMending(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(parallelOpens)
	var busy sync.Map
	err := every(ctx, func() {
		all := v.index.Sorted()
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, e := range all {
			if d := v.device(e.Name); e.Committed && (d == nil || d.err == nil) {
				continue
			}
			if _, is := busy.LoadOrStore(e.Name, true); !is && !group.TryGo(func() error {
				defer busy.Delete(e.Name)
				brief, cancel := context.WithTimeout(ctx, recordTimeout)
				defer cancel()
				if err := v.commitLater(brief, e.Name); err != nil && !errors.Is(err, content.ErrUnavailable) {
					v.cfg.Log.Error("a volume's record can't be written", "volume", e.Name, "err", err)
				}
				v.serveLater(ctx, e.Name)
				return nil
			}) {
				busy.Delete(e.Name)
			}
		}
	})
	return errors.Join(err, group.Wait())
}

// every calls do now and again until ctx ends.
func every(ctx context.Context, do func()) error {
	tick := time.Tick(tryInterval)
	for {
		select {
		case <-tick:
			do()
		case <-ctx.Done():
			return nil
		}
	}
}

// serveLater serves a volume that is to be and failed to be, when its time has come.
func (v *Volumes) serveLater(ctx context.Context, name string) {
	if d := v.device(name); d == nil || d.err == nil {
		return
	}
	defer v.turn(name)()
	e, ok := v.index.Get(name)
	d := v.device(name)
	if !ok || !e.Attached || d == nil || d.err == nil || v.cfg.Now().Before(d.again) || ctx.Err() != nil {
		return
	}
	if errors.Is(d.err, content.ErrCorrupt) || errors.Is(d.err, content.ErrFenced) {
		return // time does not mend that, and to read it all again takes long: who can attaches it
	}
	if v.attach(ctx, e, terms.Spec{}) == nil { // else List shows it
		v.cfg.Log.Info("a volume that could not be served is served", "volume", name)
	}
}

// commitLater registers a volume. If its name was taken meanwhile it gets this
// node's behind its own, and keeps its data and its clients.
func (v *Volumes) commitLater(ctx context.Context, name string) error {
	if e, ok := v.index.Get(name); !ok || e.Committed {
		return nil
	}
	end, err := v.changes.Take(ctx, name, 1)
	if err != nil {
		return fmt.Errorf("%w: it is being changed", content.ErrUnavailable)
	}
	defer end()
	e, ok := v.index.Get(name)
	if !ok || e.Committed {
		return nil
	}
	gone, body, err := v.records().Volume(ctx, name)
	switch ended := len(e.Tried) > 0 && gone.Version >= e.Tried[0].Epoch && records.Freed(gone, e.Created); {
	case err == nil:
		return v.registered(e, gone, body)
	case !errors.Is(err, content.ErrNotFound):
		return err
	case ended: // it may have been this one, which nobody brings back by that
		return v.registered(e, gone, catalog.Volume{ID: e.ID})
	}
	e, err = v.index.Change(name, func(e *index.Entry) {
		e.Epoch, e.Incarnation = max(e.Epoch, gone.Version+1), v.incarnation
		e.Tried = append(e.Tried, right.StampOf(e.Volume))
	})
	if err != nil {
		return err
	}
	r, err := v.records().Register(ctx, e.Name, gone, e.Volume)
	if errors.Is(err, content.Gone) { // the record was deleted again, and that it was is nobody's word on the volume
		_, bad := v.index.Change(name, func(e *index.Entry) { e.Tried = nil })
		return errors.Join(err, bad)
	}
	var taken *catalog.TakenError
	if errors.As(err, &taken) {
		body, _ = catalog.DecodeVolume(v.codec, taken.Current.Body) // what can't be read is another's
		return v.registered(e, taken.Current, body)
	}
	if err != nil {
		return err
	}
	v.cfg.Log.Info("a volume made while the origin was away is registered", "volume", e.Name)
	return v.registered(e, r, e.Volume)
}

// registered notes that the name of an uncommitted volume has a record: its own, or another's, and then it gets another name.
func (v *Volumes) registered(e index.Entry, r catalog.Record, body catalog.Volume) error {
	if body.ID != e.ID {
		e.Epoch = max(e.Epoch, r.Version+1) // it may have been registered, taken over, and removed
		return v.rename(e, v.index.FreeName(e.Name+"."+v.cfg.NodeID[max(0, len(v.cfg.NodeID)-8):]))
	}
	mine := body.Holder == v.cfg.Self && slices.Contains(e.Tried, right.StampOf(body))
	if !mine { // it was registered, and is another's by now: the next look at its record finds that
		body = e.Volume
	}
	_, err := v.index.Change(e.Name, func(e *index.Entry) { e.Volume, e.Committed, e.Tried = body, true, nil })
	if a := v.device(e.Name); err == nil && a != nil && a.vol != nil {
		a.vol.Enter(body.Epoch)
		a.mu.Lock()
		a.right = right.State{Self: v.cfg.Self, Process: v.incarnation, Stage: right.Unconfirmed, Here: true, Stamp: right.StampOf(body)}
		if a.base, a.body = &r, body; mine && body.Incarnation == v.incarnation {
			a.right.Stage = right.Serving
		}
		a.mu.Unlock()
	}
	return err
}

// rename gives a volume a name that is free.
func (v *Volumes) rename(e index.Entry, name string) error {
	if err := content.CheckName(name); err != nil {
		return err
	}
	defer v.turn(name)() // it is longer than the old one, so no two wait for each other
	v.cfg.Log.Warn("the name of a volume made while the origin was away was taken meanwhile; it has another one now", "was", e.Name, "is", name)
	old, d := e.Name, v.device(e.Name)
	e.Name = name
	if d != nil {
		open, _ := d.users.Shut(context.Background(), true) // who is in has the new one then
		defer open()
		v.setDevice(name, d) // it has both, so that it is never without one
		d.mu.Lock()
		d.name = name
		d.mu.Unlock()
	}
	if err := v.index.Rename(old, e); err != nil {
		v.setDevice(name, nil)
		return err
	}
	v.setDevice(old, nil)
	v.doors.Rename(old, name)
	return nil
}
