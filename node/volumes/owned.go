package volumes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
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
	tick := time.NewTicker(tryInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.lookAtOwned(ctx, due)
		case <-v.losing:
			v.giveUpLost(ctx)
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
	v.giveUpLost(ctx)
	v.keepOrphans(ctx)
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
	a := v.newAttached(e, Spec{})
	a.right.Stage = right.Checking
	return a.happen(ctx, right.Due{})
}

// giveUpLost stops serving the volumes that are another's, each for itself.
func (v *Volumes) giveUpLost(ctx context.Context) {
	_ = v.each(func(name string, a *attached) error { // none fails
		if a.vol == nil || a.vol.Geometry().ReadOnly {
			return nil
		}
		if _, _, st := a.record(); st.Stage == right.Lost {
			a.mu.Lock()
			why := a.taken
			a.mu.Unlock()
			v.giveUp(ctx, name, why)
		}
		return nil
	})
}

// watchPulse has the records of all volumes read before anything is acknowledged, when
// this process has stood still.
func (v *Volumes) watchPulse(ctx context.Context) error {
	var looks sync.WaitGroup
	defer looks.Wait()
	return v.pulse.Watch(ctx, func() {
		_ = v.each(func(_ string, a *attached) error { // none fails
			if a.waits() && a.looking.CompareAndSwap(false, true) {
				looks.Go(func() {
					defer a.looking.Store(false)
					if err := a.stoodStill(ctx); err != nil {
						v.cfg.Log.Warn("this process stood still, and a volume may be another's by now", "volume", a.Name(), "err", err)
					}
				})
			}
			return nil
		})
	})
}

// stoodStill has the record read at once, whoever is at it: guests wait, and not for ever.
func (a *attached) stoodStill(ctx context.Context) error {
	a.turn.Yield()
	if _, body, _ := a.record(); body.Policy == catalog.PolicyLocal {
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
func (v *Volumes) giveUp(ctx context.Context, name, why string) {
	defer v.turn(name)()
	e, ok := v.index.Get(name)
	if !ok || !e.Attached {
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
		_ = v.attach(ctx, e, Spec{}) // which it refuses: List and the log say why
	}
}

// takenError says why a volume is not served that was taken away.
func (v *Volumes) takenError(e index.Entry) error {
	return terms.Taken(e.Name, v.index.Path(e), e.Taken)
}

// orphanWait is how long what is left of one volume keeps the look at the others waiting.
const orphanWait = time.Second

// keepOrphans writes the records of orphans that have none, as far as the origin answers.
func (v *Volumes) keepOrphans(ctx context.Context) {
	orphans.Keeper{Index: v.index, Records: v.records(), Self: v.cfg.Self, Now: v.cfg.Now, End: func(folder string, e index.Entry) (content.Position, error) { return v.endOf(ctx, folder, e) }, Log: v.cfg.Log}.Keep(ctx)
}

// endOf is where the journal of a volume ends that is not written any more. Who attaches it
// meanwhile has its folder, and is asked at the next look.
func (v *Volumes) endOf(ctx context.Context, folder string, e index.Entry) (content.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, orphanWait)
	defer cancel()
	end, err := v.changes.Take(ctx, e.Name, 1)
	if err != nil {
		return content.Position{}, fmt.Errorf("%w: it is being attached or detached", content.ErrUnavailable)
	}
	defer end()
	c := v.journalOf(e)
	if a := v.device(e.Name); a != nil && a.vol != nil && folder == c.Dir { // it is looked at
		return a.vol.End(), nil
	}
	c.Dir = folder
	return moment.End(c)
}
