package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/moment"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

// moment opens what a reference stands for: of a volume that is attached here what it is
// now, of one elsewhere a snapshot that its node makes. The caller closes it.
func (v *Volumes) moment(ctx context.Context, ref content.Ref) (moment.Moment, error) {
	switch ref.Kind {
	case content.KindSnapshot:
		return v.momentOfSnapshot(ctx, ref.RecordName(), v.device(ref.Name))
	case content.KindVolume:
		return v.momentOfVolume(ctx, ref, v.device(ref.Name))
	}
	b, err := v.cfg.Library.Stands(ctx, ref)
	if err != nil {
		return moment.Moment{}, err
	}
	return v.bucket().Open(ctx, catalog.Snapshot{Size: b.Head.Root.Size, Folded: catalog.Folded{Head: &b.Head, Lineage: b.Lineage}})
}

// momentOfVolume opens a volume, which a serves if it is here.
func (v *Volumes) momentOfVolume(ctx context.Context, ref content.Ref, a *attached) (moment.Moment, error) {
	switch {
	case ref.Folded, (a == nil || a.folds == nil) && v.names().Released(ctx, ref.Name):
		_, body, err := v.records().Folded(ctx, ref.Name)
		if err != nil {
			return moment.Moment{}, err
		}
		return v.bucket().Open(ctx, catalog.Snapshot{ID: body.ID, Size: body.Size, Folded: body.Folded, At: body.Through()})
	case a == nil || a.folds == nil:
		return v.passing(ctx, ref.Name)
	}
	at, err := a.folds.Seal(ctx)
	if err != nil {
		return moment.Moment{}, err
	}
	return moment.Of(a.vol, at, a.own)
}

// passingLabel is that of snapshots which are removed when what they were made for is done;
// one that is seen later is left of a node that was stopped before.
const passingLabel = "passing"

// passing opens a snapshot of a volume elsewhere, which is there until Close.
func (v *Volumes) passing(ctx context.Context, name string) (moment.Moment, error) {
	made, err := v.names().Snapshot(ctx, name, terms.SnapshotSpec{Label: passingLabel, Wait: terms.Durable})
	if err != nil {
		return moment.Moment{}, err
	}
	_, body, _ := v.records().Snapshot(ctx, made.ID) // another volume may have that name and number by then
	remove := func() {
		if _, err := v.records().RemoveSnapshot(context.WithoutCancel(ctx), made.ID, body.ID); err != nil && !errors.Is(err, content.ErrNotFound) {
			v.cfg.Log.Warn("a snapshot that nothing needs any more is left", "snapshot", made.ID, "err", err)
		}
	}
	m, err := v.momentOfSnapshot(ctx, made.ID, v.device(name))
	if closed := m.Close; err == nil {
		m.Close = func() error { defer remove(); return closed() }
	} else {
		remove()
	}
	return m, err
}

// momentOfSnapshot opens a snapshot; a is its volume, if that is here.
func (v *Volumes) momentOfSnapshot(ctx context.Context, id string, a *attached) (moment.Moment, error) {
	_, body, err := v.records().Snapshot(ctx, id)
	for range records.Tries {
		if err != nil || body.Durable || body.Orphan || a == nil || a.folds == nil {
			break
		}
		if a.keeps(body) {
			return moment.Of(a.vol, body.At, func() catalog.Volume { now := a.own(); now.Size = body.Size; return now })
		}
		_, body, err = v.records().Snapshot(ctx, id) // it has become durable meanwhile
	}
	switch {
	case err != nil:
		return moment.Moment{}, err
	case body.Durable:
		return v.bucket().Open(ctx, body)
	case body.Orphan && body.Holder == v.cfg.Self:
		return v.momentOfOrphan(ctx, body)
	}
	return moment.Moment{}, fmt.Errorf("snapshot %s: %w: it is not durable, and %s has what the bucket lacks of it", id, content.ErrConflict, v.cfg.Who(body.Holder))
}

// keeps keeps the place of a snapshot in the journal, if it is in this one: not in that of another
// volume that had the name, nor of who had this one before, or has it by now.
func (a *attached) keeps(body catalog.Snapshot) bool {
	e, _ := a.v.index.Get(a.Name())
	mine := body.Durable && body.Epoch <= e.Epoch || slices.Contains(e.Waiting, index.Waiting{Number: body.Number, At: body.At, Size: body.Size})
	return e.ID == body.ID && mine && a.vol.Keep(body.At) == nil
}

// momentOfOrphan opens the folder that an orphan was left in.
func (v *Volumes) momentOfOrphan(ctx context.Context, body catalog.Snapshot) (moment.Moment, error) {
	dir, e, err := v.index.Orphan(body)
	if err != nil {
		return moment.Moment{}, fmt.Errorf("snapshot %s: %w", body.Ref(), err)
	}
	return v.bucket().OpenFolder(ctx, body, e.Ancestors, dir)
}

// bucket is how what the bucket has is looked at.
func (v *Volumes) bucket() moment.Config {
	return moment.Config{Dir: filepath.Join(v.cfg.Dir, index.ViewsDir), Origin: v.cfg.Origin, Log: v.cfg.Log, Root: func(ctx context.Context, head pack.Head, lineage []content.CID) (volume.Source, error) {
		return v.cfg.Library.Image(ctx, fetch.Root{Head: head, Lineage: lineage})
	}}
}

// Export writes what a reference stands for to a file, which is empty: holes and zeros
// stay holes. What was written is synced when it returns.
func (v *Volumes) Export(ctx context.Context, ref content.Ref, f *os.File, progress terms.Progress) (err error) {
	defer terms.During(&err, "export %s", ref)
	m, err := v.moment(ctx, ref)
	if err != nil {
		return err
	}
	return errors.Join(m.Export(ctx, f, progress), m.Close())
}

// Changes yields the ranges in which two snapshots of a volume differ, by offset, in whole
// units of 4 KiB; with to 0 the volume itself, as it is now, is the second. Only what was
// written between them, or lies in chunks that their maps have not alike, is read.
func (v *Volumes) Changes(ctx context.Context, name string, from, to uint64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		if err := v.changesOf(ctx, name, from, to, func(x blockdev.Range) bool { return yield(x, nil) }); err != nil {
			yield(blockdev.Range{}, fmt.Errorf("changes of volume %q: %w", name, err))
		}
	}
}

func (v *Volumes) changesOf(ctx context.Context, name string, from, to uint64, yield func(blockdev.Range) bool) (err error) {
	first, second := content.Ref{Kind: content.KindSnapshot, Name: name, Seq: from}, content.Ref{Kind: content.KindVolume, Name: name}
	if to != 0 {
		second = content.Ref{Kind: content.KindSnapshot, Name: name, Seq: to}
	}
	a, err := v.moment(ctx, first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := v.moment(ctx, second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err = (moment.Pair{A: a, B: b, Nodes: v.bucket().Nodes}).Differ(ctx, moment.Whole(), yield); errors.Is(err, io.EOF) { // who asked has enough
		return nil
	}
	return err
}

// past is for one who asks for parts of that again and again, of a volume that is served here.
func (v *Volumes) past(a *attached) *moment.Past {
	return &moment.Past{Nodes: v.bucket().Nodes, IsNow: func(m moment.Moment) bool { return m.At == a.vol.End() }, Open: func(ctx context.Context, number uint64) (moment.Moment, error) {
		if number == 0 && a.vol.Geometry().ReadOnly {
			return moment.Still(a.vol, a.own()), nil
		} else if number == 0 {
			return v.momentOfVolume(ctx, content.Ref{Kind: content.KindVolume, Name: a.Name()}, a)
		}
		return v.momentOfSnapshot(ctx, content.Ref{Kind: content.KindSnapshot, Name: a.Name(), Seq: number}.RecordName(), a)
	}}
}

// Promote publishes what a reference stands for as an image. Of a volume that is attached here all goes into chunks first.
// What the image's scope may refer to is not sent again: for one of the volume's own farm that is everything.
func (v *Volumes) Promote(ctx context.Context, ref content.Ref, to terms.PromoteSpec, progress terms.Progress) (err error) {
	defer terms.During(&err, "promote %s to image %q", ref, to.Image)
	if err := content.KindImage.CheckName(to.Image); err != nil {
		return err
	}
	if v.cfg.Publish == nil {
		return fmt.Errorf("%w: this node publishes no images", content.ErrForbidden)
	}
	if to.Scope.IsZero() {
		to.Scope = content.Mesh()
	}
	if a := v.device(ref.Name); ref.Kind == content.KindVolume && !ref.Folded && a != nil && a.folds != nil {
		if err := a.folds.Run(ctx, fold.Chunks); err != nil {
			return err
		}
	}
	m, err := v.moment(ctx, ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	store, err := v.bucket().Bucket()
	if err != nil {
		return err
	}
	body, err := m.Image(ctx, build.Config{Bucket: store, Scope: to.Scope, Signer: v.cfg.Signer, Now: v.cfg.Now, Log: v.cfg.Log}, progress)
	if err == nil {
		body.Source = ref.String()
		err = v.cfg.Publish(ctx, to.Image, body, to.Replace)
	}
	return err
}
