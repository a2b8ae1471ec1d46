package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// parallelFolds bounds the folds of a node that are under way: each reads the disk and
// fills the uplink.
const parallelFolds = 4

// folding is how what is written to a volume that is served moves to the bucket.
type folding struct {
	a    *attached
	turn chan struct{} // has one while a fold is under way
	fold *fold.Fold

	mu    sync.Mutex // guards what follows
	clock fold.Clock
	why   error // of the last fold, nil if it went well
}

// newFolding is for a volume that was just opened.
func (a *attached) newFolding(e index.Entry) *folding {
	f := &folding{a: a, turn: make(chan struct{}, 1)}
	f.fold = fold.New(fold.Config{
		Journal: a.vol, Bucket: a.v.cfg.Origin, Revise: a.revise, Settle: a.settle, Tails: a.theTails,
		Record: func() catalog.Volume { _, body, _ := a.record(); return body },
		Root: func(ctx context.Context, head pack.Head) (volume.Source, error) {
			return a.v.cfg.Library.Image(ctx, fetch.Root{Head: head})
		},
		Pending: func() (out []content.Position) {
			e, _ := a.v.index.Get(a.Name())
			for _, w := range e.Waiting {
				out = append(out, w.At)
			}
			return out
		},
		Dir: a.v.index.Path(e), Scope: content.Farm(a.v.cfg.Farm), Signer: a.v.cfg.Signer, Now: a.v.cfg.Now, Log: a.v.cfg.Log,
	})
	return f
}

// run folds the volume, when no other fold of it is under way.
func (f *folding) run(ctx context.Context, want fold.Want) error {
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return fmt.Errorf("fold: %w: another is under way: %w", content.ErrUnavailable, context.Cause(ctx))
	}
	begun := f.a.v.cfg.Now()
	_, was, _ := f.a.record()
	err := f.fold.Run(ctx, want)
	if err == nil {
		err = f.a.dismiss(ctx, was)
	}
	if err != nil && f.behind() > 2*fold.AfterBytes {
		f.fold.Loosen()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock.Folded(begun, f.a.v.cfg.Now(), err)
	f.why = err
	return err
}

// dismiss has the record name no holders any more, once the bucket has all that was
// acknowledged by the time when flushes did not wait for them any more: was is from before it
// was brought there.
func (a *attached) dismiss(ctx context.Context, was catalog.Volume) error {
	if k, _ := catalog.PolicyHolders(was.Policy); k > 0 || len(was.Holders) == 0 {
		return nil
	}
	return a.revise(ctx, func(body *catalog.Volume) error {
		if k, _ := catalog.PolicyHolders(body.Policy); k == 0 {
			body.Holders, body.DegradedSince = nil, time.Time{}
		}
		return nil
	})
}

// behind is how many bytes of the journal the record does not name, about.
func (f *folding) behind() int64 {
	_, body, _ := f.a.record()
	end := body.Through()
	if f.a.vol.End().Seq <= end.Seq {
		return 0
	}
	total := int64(1)
	for _, s := range f.a.vol.Sealed() {
		if s.Through.Seq > end.Seq {
			total += s.Bytes
		}
	}
	return total
}

// isDue reports whether the volume is to be folded now.
func (f *folding) isDue(now time.Time) bool {
	_, body, st := f.a.record()
	if st.Stage != right.Serving || len(f.turn) > 0 {
		return false
	}
	behind := f.behind()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clock.Due(body.ID, behind, now)
}

// lag is how much the bucket lacks, and why the last fold failed.
func (f *folding) lag() (int64, error) {
	behind := f.behind()
	f.mu.Lock()
	defer f.mu.Unlock()
	return behind, f.why
}

// keepFolding folds the volumes that are due, until ctx ends.
func (v *Volumes) keepFolding(ctx context.Context) error {
	var group errgroup.Group
	group.SetLimit(parallelFolds)
	err := every(ctx, func() {
		_ = v.each(func(name string, a *attached) error {
			if a.vol == nil || a.folds == nil || !a.folds.isDue(v.cfg.Now()) {
				return nil
			}
			group.TryGo(func() error {
				if err := a.folds.run(ctx, fold.Safe); err != nil && ctx.Err() == nil {
					v.cfg.Log.Warn("a volume is not folded; what was written since stays on this node, and that is tried again", "volume", name, "err", err)
				}
				return nil
			})
			return nil
		})
	})
	return errors.Join(err, group.Wait())
}

// chunksWithin is how long a detach may take to bring all into one root, of which another
// node reads what it needs. What takes longer goes as segments, which that one reads whole.
const chunksWithin = 10 * time.Second

// upload has all of a volume in the bucket, and if it can in one root.
func upload(ctx context.Context, a *attached) error {
	if a.folds == nil {
		return uploadNothing(ctx, a)
	}
	brief, cancel := context.WithTimeout(ctx, chunksWithin)
	defer cancel()
	if err := a.folds.run(brief, fold.Chunks); err == nil || errors.Is(err, content.ErrFenced) {
		return err
	}
	return a.folds.run(ctx, fold.Safe)
}

// settle makes those snapshots durable that the volume's record reaches.
func (a *attached) settle(ctx context.Context, now catalog.Volume) error {
	e, _ := a.v.index.Get(a.Name())
	for _, w := range e.Waiting {
		n := 1 + slices.IndexFunc(now.Segments, func(s content.SegmentRef) bool { return s.Through == w.At })
		if n == 0 && now.Base != w.At {
			continue
		}
		if err := a.v.makeDurable(ctx, a.Name(), w, now, n); err != nil {
			return err
		}
		if _, err := a.v.index.Change(a.Name(), func(e *index.Entry) {
			e.Waiting = slices.DeleteFunc(slices.Clone(e.Waiting), func(x index.Waiting) bool { return x == w })
		}); err != nil {
			return err
		}
		a.vol.Release(w.At)
	}
	return nil
}

// makeDurable has the record of a snapshot name what the volume's does up to there. One
// that has no record was given up.
func (v *Volumes) makeDurable(ctx context.Context, name string, w index.Waiting, now catalog.Volume, segments int) error {
	ref := content.Ref{Kind: content.KindSnapshot, Name: name, Seq: w.Number}
	for range recordTries {
		r, err := v.cfg.Registry.Snapshot(ctx, ref.RecordName())
		if errors.Is(err, content.ErrNotFound) {
			return nil
		}
		var body catalog.Snapshot
		if err == nil {
			body, err = catalog.DecodeSnapshot(v.codec, ref.RecordName(), r.Body)
		}
		if err != nil || body.Durable || body.ID != now.ID {
			return err
		}
		body.Head, body.Lineage, body.Base, body.Segments, body.Durable = now.Head, now.Lineage, now.Base, now.Segments[:segments], true
		b, err := body.Encode(v.codec)
		if err == nil {
			_, err = v.cfg.Registry.Commit(ctx, content.KindSnapshot, ref.RecordName(), &r, b)
		}
		if !isOvertaken(err) {
			return err
		}
	}
	return fmt.Errorf("%s: %w: others write its record all the time", ref, content.ErrUnavailable)
}

// readable returns the bucket, for segments that others have put there.
func (v *Volumes) readable() (bucket.Bucket, error) {
	if v.cfg.Origin == nil {
		return nil, fmt.Errorf("%w: this node has no origin to read segments from", content.ErrUnavailable)
	}
	return v.cfg.Origin()
}

// stored are segments of a record at the origin, and those behind them.
func (v *Volumes) stored(ctx context.Context, refs []content.SegmentRef, tails []fold.Stored) []volume.AdoptedSegment {
	return fold.Adopted(ctx, append(fold.InBucket(v.readable, refs), tails...))
}

// ancestorsIn are the other volumes that wrote segments of a volume of that ID.
func ancestorsIn(segments []volume.AdoptedSegment, id content.VolumeID) (out []content.VolumeID) {
	for _, s := range segments {
		if s.Ref.Volume != id && !slices.Contains(out, s.Ref.Volume) {
			out = append(out, s.Ref.Volume)
		}
	}
	return out
}

// endTails ends the epoch that a record has, if its flushes go to the origin, before the
// next one is taken. This process's go on behind what was found.
func (a *attached) endTails(ctx context.Context, body catalog.Volume) ([]fold.Stored, error) {
	store, err := a.v.readable()
	if err != nil && body.Policy != catalog.PolicyOrigin {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	tails, err := fold.EndEpoch(ctx, store, body.ID, body.Epoch, body.Through())
	if err != nil {
		return nil, err
	}
	after := body.Through()
	if n := len(tails); n > 0 {
		after = tails[n-1].Ref.Through
	}
	a.tails.Store(a.newTails(body.ID, after))
	return tails, nil
}

func (a *attached) newTails(id content.VolumeID, after content.Position) *fold.Tails {
	return fold.NewTails(fold.TailsConfig{Bucket: a.v.readable, Dir: a.v.index.Path(index.Entry{Volume: catalog.Volume{ID: id}}), After: after})
}

// theTails are those of a volume whose flushes go to the origin, nil for others. One that
// got this policy while it is served begins behind its record.
func (a *attached) theTails() *fold.Tails {
	_, body, st := a.record()
	if body.Policy != catalog.PolicyOrigin || st.Stage != right.Serving {
		return nil
	}
	if t := a.tails.Load(); t == nil || t.Through().Seq < body.Through().Seq { // it was folded under another policy since
		a.tails.CompareAndSwap(t, a.newTails(body.ID, body.Through()))
	}
	return a.tails.Load()
}

// tailed has what a volume writes at the origin before a flush is acknowledged.
type tailed struct{ a *attached }

// Persist implements volume.Persister.
func (p tailed) Persist(ctx context.Context, v *volume.Volume, upTo content.Position) error {
	tails := p.a.theTails()
	if tails == nil {
		return fmt.Errorf("%w: whether the volume is this node's still is not known", content.ErrUnavailable)
	}
	return tails.Persist(ctx, v, upTo)
}
