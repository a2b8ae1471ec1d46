package volumes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// ownedFor is how long a record that says that a volume is this node's is taken to
	// say so still, while the node is not cut off: with 1,000 volumes one look in 0.6 s.
	ownedFor = 10 * time.Minute
	// stoodStill is how long nothing was looked at where the process stood still, and
	// the mesh went on without it.
	stoodStill = 3 * tryInterval
)

// owned is when the record of each volume was last seen to be this node's.
type owned struct {
	seen     map[content.VolumeID]time.Time
	returned int64 // Config's, then
	last     time.Time
}

// keepOwned stops serving volumes that this node does not hold any more, by their
// records: those are looked at after a start, when the node was cut off, and now and then.
func (v *Volumes) keepOwned(ctx context.Context) error {
	o := owned{seen: map[content.VolumeID]time.Time{}}
	return every(ctx, func() {
		if n := v.cfg.Returned(); n != o.returned || v.cfg.Now().Sub(o.last) > stoodStill {
			o.returned = n
			clear(o.seen)
		}
		for _, e := range v.index.sorted() {
			if d := v.device(e.Name); e.Taken != "" && d != nil && d.vol != nil && !d.vol.Geometry().ReadOnly { // it could not be closed
				v.giveUp(ctx, e.Name, e.Taken)
			}
			if !e.Attached || !e.Committed || e.Taken != "" || v.cfg.Now().Sub(o.seen[e.ID]) < ownedFor || ctx.Err() != nil {
				continue
			}
			if why, err := v.takenAway(ctx, e); err != nil {
				v.cfg.Log.Debug("whose a volume is can't be told", "volume", e.Name, "err", err)
			} else if o.seen[e.ID] = v.cfg.Now(); why != "" {
				v.giveUp(ctx, e.Name, why)
			}
		}
		o.last = v.cfg.Now()
	})
}

// takenAway says by whom, or how, a volume's name was taken from this node; "" if it was
// not. That there is no record at all says nothing: nobody has signed that.
func (v *Volumes) takenAway(ctx context.Context, e entry) (why string, err error) {
	var body catalog.Volume
	r, err := v.cfg.Registry.SureVolume(ctx, e.Name)
	if err == nil {
		body, err = catalog.DecodeVolume(v.codec, r.Body)
	}
	switch {
	case r.Tombstone && r.SignedAt.After(e.Created):
		return "its name was freed on " + r.SignedAt.UTC().Format(time.RFC3339), nil
	case err != nil || body.ID == e.ID && body.Holder == v.cfg.Self && body.Epoch <= e.Epoch:
		return "", err
	}
	return v.holding(ctx, r, body), nil
}

// giveUp stops serving a volume, whoever uses it, for good; its data stay.
func (v *Volumes) giveUp(ctx context.Context, name, why string) {
	defer v.turn(name)()
	e, ok := v.index.get(name)
	if !ok || !e.Attached {
		return
	}
	e.Taken = why
	if err := errors.Join(v.close(ctx, name, true), v.index.put(e)); err != nil {
		v.cfg.Log.Error("a volume that was taken away is not closed as it should be", "volume", name, "err", err)
	}
	if d := v.device(name); d == nil || d.vol == nil { // else it is tried again
		_ = v.attach(ctx, e) // which it refuses: List and the log say why
	}
}

// isOwned fails if the volume was taken away, unless it is only to be read.
func (v *Volumes) isOwned(e entry) error {
	if e.Taken == "" || e.ReadOnly {
		return nil
	}
	return fmt.Errorf("%w: %s; its data stay in %s: `grange volume attach %s --readonly` shows them, and `grange volume rm %[4]s` deletes them",
		content.ErrFenced, e.Taken, v.index.path(e), e.Name)
}
