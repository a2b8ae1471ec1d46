package volumes

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/grangemesh/grange/blockdev/limit"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/gate"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/readers"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// skipsOrigin reports whether a start goes on without the origin, which has not answered for another of its volumes.
func (v *Volumes) skipsOrigin() bool { return v.opening.Load() && v.away.Load() }

// patience is how long the origin may take to answer: guests wait for a start.
func (v *Volumes) patience() time.Duration {
	if v.opening.Load() {
		return startTimeout
	}
	return recordTimeout
}

// claim has the volume opened, if it is this node's or may become so.
func (a *attached) claim(ctx context.Context, e index.Entry) error {
	readOnly := e.ReadOnly || a.spec.ReadOnly
	switch {
	case e.Reader, e.Taken != "" && readOnly && !a.spec.Takeover: // what is left here is looked at
		return a.serve(ctx)
	case e.Taken != "" && a.spec == (terms.Spec{}): // nobody asks for it but a start
		return a.v.takenError(e)
	case !e.Committed:
		a.admit()
		return a.serve(ctx)
	}
	return a.happen(ctx, right.Asked{Wish: right.Wish{Takeover: a.spec.Takeover, Generation: a.spec.Generation}})
}

// serve opens the volume as its record says that it is; to nobody yet.
func (a *attached) serve(ctx context.Context) (err error) {
	e, ok := a.v.index.Get(a.Name())
	if !ok {
		return content.ErrNotFound
	}
	e.ReadOnly = e.ReadOnly || a.spec.ReadOnly
	cfg := a.v.journalOf(e)
	cfg.Kept = e.Places()
	cfg.Free = func() float64 { return index.FreeShare(cfg.Dir) }
	a.guard = a.v.cfg.Holders.Guard(a.owner())
	cfg.Persist, cfg.Advanced = a.guard.Persist, a.guard.Advanced
	k, _ := catalog.PolicyHolders(e.Policy) // the guard says what is wrong with one that is none
	cfg.Followed = k > 0
	if e.Head != nil {
		root := fetch.Root{Head: e.Widest(a.v.codec), Lineage: e.Lineage, As: []content.Ref{{Kind: content.KindVolume, Name: e.Name}}}
		if a.image, err = a.v.cfg.Library.Image(ctx, root); err != nil {
			return err
		}
		if a.v.cfg.Opened != nil {
			a.v.cfg.Opened(a.image, e, a.v.opening.Load())
		}
		cfg.Source, cfg.SourceSize, cfg.ChunkSize = a.image, e.Head.Root.Size, e.Head.Root.ChunkSize
	}
	if a.vol, err = volume.Open(cfg); err == nil {
		if err := a.isCurrent(ctx, e); err != nil {
			err = errors.Join(err, a.vol.Close())
			a.vol = nil
			return err
		}
		if !e.ReadOnly && a.v.cfg.Origin != nil {
			a.folds = a.newFolds(e)
		}
		a.guard.Begin(a.vol)
		a.front = limit.New(&gate.Device{Volume: a.vol, Gate: a.gate}, limit.Limits{IOPS: e.IOPS, BytesPerSecond: e.Rate})
	}
	return err
}

// present opens the door that the volume is served through, once it is what it is to be.
func (a *attached) present(ctx context.Context) (err error) {
	e, _ := a.v.index.Get(a.Name())
	if e.Rolling != 0 && e.Taken == "" { // else it is looked at as it was left
		err = a.roll(ctx, e)
	}
	if err == nil {
		a.disk, err = a.v.doors.OpenDisk(ctx, e, a.front, func(number int) error {
			_, err := a.v.index.Change(e.Name, func(e *index.Entry) { e.Disk = &number })
			return err
		})
	}
	if err != nil {
		err = errors.Join(err, a.shut())
		a.vol, a.disk, a.folds = nil, nil, nil
	}
	return err
}

// journalOf says how a volume's folder is opened, without the root under it.
func (v *Volumes) journalOf(e index.Entry) volume.Config {
	return volume.Config{Dir: v.index.Path(e), ID: e.ID, Size: e.Size, Epoch: e.Epoch, ReadOnly: e.ReadOnly, Base: e.Base, Ancestors: e.Ancestors, Step: v.cfg.At, Log: v.cfg.Log}
}

// isCurrent fails where the bucket has what this disk has not: it is a copy of what it was once, and what it says since
// is nothing. Without the record takeNext finds that out.
func (a *attached) isCurrent(ctx context.Context, e index.Entry) (err error) {
	if _, _, st := a.record(); st.Stage == right.Unconfirmed {
		a.blind, err = a.v.index.Blinded(e.Name, a.vol.End().Seq)
	}
	if why := a.older(e.Volume, a.vol.End().Seq); err == nil && e.Committed && !e.ReadOnly && why != "" {
		err = a.gone(ctx, why)
	}
	return err
}

// gone notes that what is not served is this node's no more. Who has its disk open from before a start waits for nobody.
func (a *attached) gone(ctx context.Context, why string) error {
	e, err := a.v.index.Change(a.Name(), func(e *index.Entry) { e.Taken = why })
	return errors.Join(a.v.takenError(e), err, a.v.doors.GiveUpDisk(ctx, e, true))
}

// older says why a disk whose journal ends with an entry, or did, is an older copy; empty where it is none.
func (a *attached) older(body catalog.Volume, end uint64) string {
	return terms.Outdated(a.Name(), end, max(body.Through().Seq, a.line.Through().Seq)) // acknowledged, and not in the record yet
}

// ask has a volume that is served follow what a Put asks for.
func (a *attached) ask(ctx context.Context, spec terms.Spec) error {
	_, body, st := a.record()
	if st.Stage == right.Lost {
		return a.fenced()
	}
	after := body
	if err := spec.Change(&after); err != nil || after.Policy == body.Policy && after.Degrade == body.Degrade && after.IOPS == body.IOPS && after.Rate == body.Rate && after.Generation == body.Generation {
		return err
	}
	if after.Policy != body.Policy { // no tail comes by the place of a snapshot that it does not know
		a.placing.Lock()
		defer a.placing.Unlock()
	}
	err := a.revise(ctx, spec.Change)
	if a.vol != nil { // also where the reply was lost
		a.guard.Changed()
		a.vol.Distrust()
	}
	if err == nil {
		_, body, _ = a.record()
		a.front.Set(limit.Limits{IOPS: body.IOPS, BytesPerSecond: body.Rate})
	}
	return err
}

// drop ends with a folder that was made for an attach that fails by why, if one was. Where the record
// may name this node by now the folder gets its name, as a start would have it.
func (a *attached) drop(why error) error {
	a.mu.Lock()
	fresh := a.fresh
	a.fresh = nil
	a.mu.Unlock()
	switch {
	case fresh == nil:
		return nil
	case len(fresh.Tried) > 0 && errors.Is(why, content.ErrUnavailable):
		return a.v.index.Replace(*fresh)
	}
	return a.v.index.GiveUp(*fresh)
}

// adopt makes a folder of what the record names, if there is none yet.
func (a *attached) adopt(ctx context.Context) error {
	base, body, st := a.record()
	name := a.Name()
	e := index.Entry{Name: name, Volume: body, Transport: a.spec.Transport, Created: a.v.cfg.Now(), Committed: true, Empty: true, Adopted: true, Attached: true}
	if a.fresh != nil && len(a.fresh.Tried) > 0 && a.made == base.ETag {
		return nil
	}
	if err := a.drop(nil); err != nil {
		return err
	}
	if old, here := a.v.index.Get(name); here {
		e.Transport, e.Created = old.Transport, old.Created
	} else if err := a.v.index.Free(name); err != nil {
		return err
	}
	e.Made = readers.Made(ctx, a.v.cfg.Library.Stands, a.v.codec, body)
	tails, err := a.line.EndEpoch(ctx, body)
	if err != nil {
		return err
	}
	segments := a.v.bucket().Stored(ctx, body.Segments, tails)
	e.Ancestors = journal.Ancestors(segments, e.ID)
	if err := a.v.index.Prepare(e); err != nil {
		return err
	}
	a.mu.Lock()
	a.fresh, a.made = &e, base.ETag
	a.mu.Unlock()
	inherited, err := a.inherit(ctx, body, st, e)
	if n, m := len(inherited), len(segments); n > 0 && m > 0 && segments[m-1].Ref.Through.Seq >= inherited[n-1].Ref.Through.Seq {
		inherited = nil // the tails have more
	} else if n > 0 && len(tails) > 0 {
		segments = a.v.bucket().Stored(ctx, body.Segments, nil)
		a.line.Begin(body.Through())
	}
	if segments = append(segments, inherited...); err == nil && len(segments) > 0 {
		e.Ancestors = journal.Ancestors(segments, e.ID)
		err = journal.Adopt(a.v.index.HalfMade(e), e.ID, segments, a.v.cfg.At)
	}
	return errors.Join(err, os.RemoveAll(a.v.index.HalfMade(e)+inheritedFolder)) // its files have other names
}
