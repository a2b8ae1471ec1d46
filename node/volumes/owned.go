package volumes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/orphans"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// keepOwned looks whether this node's volumes are its own still, by their records: when the
// node was cut off, and now and then; and stops those that are not.
func (v *Volumes) keepOwned(ctx context.Context, due *right.Looks) error {
	due.End(v.cfg.Now()) // volumes were opened so far
	tick := time.Tick(tryInterval)
	var giving sync.WaitGroup // one that takes long keeps nobody from looking
	defer giving.Wait()
	for {
		select {
		case <-tick:
			v.lookAtOwned(ctx, due)
			giving.Go(func() { v.giveUpLost(ctx) })
		case <-v.losing:
			giving.Go(func() { v.giveUpLost(ctx) })
		case <-ctx.Done():
			return nil
		}
	}
}

func (v *Volumes) lookAtOwned(ctx context.Context, due *right.Looks) {
	due.Begin(v.cfg.Returned(), v.cfg.Now())
	var looks errgroup.Group
	looks.SetLimit(parallelOpens)
	for _, e := range v.index.Sorted() {
		a := v.device(e.Name)
		look, said := func() error { return v.lookAtDetached(ctx, e.Name) }, e.Created
		if a != nil {
			look, said = func() error { return a.happen(ctx, right.Due{}) }, a.said()
		}
		if !e.Committed || e.Taken != "" || e.Empty || a != nil && a.vol == nil || !due.IsDue(e.ID, said, v.cfg.Now()) {
			continue
		}
		looks.Go(func() error {
			if err := look(); err != nil {
				v.cfg.Log.Debug("whose a volume is can't be told", "volume", e.Name, "err", err)
			}
			return nil
		})
	}
	_ = looks.Wait() // none fails
	v.orphans.Keep(ctx)
	due.End(v.cfg.Now())
}

// lookAtDetached looks at the record of a volume that nobody has attached, and whose journal
// is on this disk alone: if another took it over, that is an orphan.
func (v *Volumes) lookAtDetached(ctx context.Context, name string) error {
	brief, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	end, err := v.changes.Take(brief, name, 1)
	if err != nil {
		return err
	}
	defer end()
	e, here := v.index.Get(name)
	if !here || e.Empty || e.Taken != "" || v.device(name) != nil {
		return nil
	}
	a := v.newAttached(e, terms.Spec{})
	a.right.Stage = right.Checking
	if r, body, err := v.records().SureVolume(brief, name); err == nil && e.Leaving && a.right.IsMine(body) && body.State == catalog.Released {
		return a.keep(&r, body) // nobody has heard that
	}
	return a.happen(ctx, right.Due{})
}

// giveUpLost stops serving the volumes that are another's, each for itself, and but for those that somebody else is at.
func (v *Volumes) giveUpLost(ctx context.Context) {
	v.each(func(name string, a *attached) {
		if a.vol == nil || a.vol.Geometry().ReadOnly {
			return
		}
		a.mu.Lock()
		why, lost := a.taken, a.right.Stage == right.Lost && a.taken != "" // without its reason it would be served again
		a.mu.Unlock()
		if lost && a.leaving.CompareAndSwap(false, true) {
			defer a.leaving.Store(false)
			v.giveUp(ctx, name, a, why)
		}
	})
}

// watchPulse has the records of all volumes read before anything is acknowledged, when this process has stood still.
func (v *Volumes) watchPulse(ctx context.Context) error {
	var looks sync.WaitGroup
	defer looks.Wait()
	return v.pulse.Watch(ctx, func() {
		for _, a := range v.devices {
			if a.waits() && a.looking.CompareAndSwap(false, true) {
				looks.Go(func() {
					defer a.looking.Store(false)
					if err := a.stoodStill(ctx); err != nil {
						v.cfg.Log.Warn("this process stood still, and a volume may be another's by now", "volume", a.Name(), "err", err)
					}
				})
			}
		}
	})
}

// stoodStill has the record read at once, whoever is at it: guests wait, and not for ever where they can go on without.
func (a *attached) stoodStill(ctx context.Context) error {
	a.turn.Yield()
	if _, body, _ := a.record(); body.Policy != catalog.PolicyOrigin {
		brief, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		ctx = brief
	}
	return a.happen(ctx, right.StoodStill{})
}

// waits reports whether a volume acknowledges nothing until its record was read.
func (a *attached) waits() bool {
	_, body, st := a.record()
	return a.vol != nil && !a.gate.IsOpen() && (st.Stage == right.Checking || st.MayAcknowledge(body.Policy == catalog.PolicyLocal))
}

// giveUp stops serving a volume, whoever uses it, for good; its data stay.
func (v *Volumes) giveUp(ctx context.Context, name string, a *attached, why string) {
	defer v.turn(name)()
	e, ok := v.index.Get(name)
	if !ok || !e.Attached || v.device(name) != a { // it was taken back meanwhile
		return
	}
	v.cfg.Log.Warn("a volume is another's, and served here no more", "volume", name, "why", why)
	err := v.close(ctx, name, true, nil)
	e, kept := v.index.Change(name, func(e *index.Entry) { e.Taken = why })
	if err := errors.Join(err, kept); err != nil {
		v.cfg.Log.Error("a volume that was taken away is not closed as it should be", "volume", name, "err", err)
	}
	if d := v.device(name); d == nil || d.vol == nil { // else it is tried again
		e.Taken = why
		_ = v.attach(ctx, e, terms.Spec{}) // which it refuses: List and the log say why
	}
}

// takenError says why a volume is not served that was taken away.
func (v *Volumes) takenError(e index.Entry) error {
	return fmt.Errorf("%w: %s; its data stay in %s: `grange volume attach %s --readonly` shows them, `grange volume rm %[4]s` leaves them to the snapshot that they are, and with --purge deletes them", content.ErrFenced, e.Taken, v.index.Path(e), e.Name)
}

// newOrphans is for a start.
func (v *Volumes) newOrphans() *orphans.Keeper {
	return &orphans.Keeper{Index: v.index, Records: v.records, Self: v.cfg.Self, Now: v.cfg.Now, Turns: v.changes, Journal: v.journalOf, Log: v.cfg.Log,
		Served: func(name string) *volume.Volume {
			if a := v.device(name); a != nil {
				return a.vol
			}
			return nil
		}, Close: func(ctx context.Context, name string) error { return v.close(ctx, name, false, nil) }}
}
