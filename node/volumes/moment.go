package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// moment is a disk as it was at a place of its journal. It does not change.
type moment struct {
	vol     *volume.Volume
	at      content.Position
	size    int64
	head    *pack.Head // what is under the journal behind base
	lineage []content.CID
	base    content.Position
	whole   bool // it is all that vol has, which nobody writes
	close   func() error
}

// read fills p from off.
func (m moment) read(ctx context.Context, p []byte, off int64) error {
	if m.whole {
		return m.vol.ReadAt(ctx, p, off)
	}
	return m.vol.ReadAsOf(ctx, p, off, m.at)
}

// moment opens what a reference stands for: of a volume that is attached here what it is
// now, of one elsewhere a snapshot that its node makes. The caller closes it.
func (v *Volumes) moment(ctx context.Context, ref content.Ref) (moment, error) {
	switch ref.Kind {
	case content.KindSnapshot:
		return v.momentOfSnapshot(ctx, ref.RecordName())
	case content.KindVolume:
		return v.momentOfVolume(ctx, ref, v.device(ref.Name))
	}
	b, err := v.cfg.Library.Base(ctx, ref)
	if err != nil {
		return moment{}, err
	}
	return v.lookInto(ctx, catalog.Snapshot{Size: b.Head.Root.Size, Head: &b.Head, Lineage: b.Lineage})
}

// momentOfVolume opens a volume, which a serves if it is here.
func (v *Volumes) momentOfVolume(ctx context.Context, ref content.Ref, a *attached) (moment, error) {
	switch {
	case ref.Folded:
		_, body, err := v.record(ctx, ref.Name)
		if err != nil {
			return moment{}, err
		}
		return v.lookInto(ctx, catalog.Snapshot{ID: body.ID, Size: body.Size, Head: body.Head, Lineage: body.Lineage, Base: body.Base, Segments: body.Segments, At: body.Through()})
	case a == nil || a.folds == nil:
		made, err := v.snapshotElsewhere(ctx, ref.Name, SnapshotSpec{Wait: waitDurable})
		if err != nil {
			return moment{}, err
		}
		return v.momentOfSnapshot(ctx, made.ID)
	}
	at, err := a.folds.fold.Seal(ctx)
	if err != nil {
		return moment{}, err
	}
	_, now, _ := a.record()
	return moment{a.vol, at, now.Size, now.Head, now.Lineage, now.Base, false, func() error { a.vol.Release(at); return nil }}, nil
}

func (v *Volumes) momentOfSnapshot(ctx context.Context, id string) (moment, error) {
	body, _, err := v.snapshotRecord(ctx, id)
	if err != nil {
		return moment{}, err
	}
	if a := v.device(body.Volume); a != nil && a.folds != nil && !body.Durable && !body.Orphan && a.vol.Keep(body.At) == nil {
		return moment{a.vol, body.At, body.Size, body.Head, body.Lineage, body.Base, false, func() error { a.vol.Release(body.At); return nil }}, nil
	}
	switch {
	case body.Durable:
		return v.lookInto(ctx, body)
	case body.Orphan && body.Holder == v.cfg.Self:
		return v.momentOfOrphan(ctx, body)
	}
	who, _ := v.cfg.Holder(ctx, body.Holder)
	return moment{}, fmt.Errorf("snapshot %s: %w: it is not durable, and %s has what the bucket lacks of it", id, content.ErrConflict, who)
}

// momentOfOrphan opens the folder that an orphan was left in.
func (v *Volumes) momentOfOrphan(ctx context.Context, body catalog.Snapshot) (moment, error) {
	dir, err := v.orphanDir(body)
	if err != nil {
		return moment{}, fmt.Errorf("snapshot %s: %w", body.Ref(), err)
	}
	return v.openFolder(ctx, body, dir, func() error { return nil })
}

// lookInto opens what the bucket has of a snapshot, in a folder of its own.
func (v *Volumes) lookInto(ctx context.Context, body catalog.Snapshot) (m moment, err error) {
	if err := os.MkdirAll(filepath.Join(v.cfg.Dir, index.ViewsDir), 0o700); err != nil {
		return m, err
	}
	dir, err := os.MkdirTemp(filepath.Join(v.cfg.Dir, index.ViewsDir), "")
	if err != nil {
		return m, err
	}
	gone := func() error { return os.RemoveAll(dir) }
	folder := filepath.Join(dir, body.ID.String())
	err = volume.Create(folder, body.ID)
	if err == nil && len(body.Segments) > 0 {
		p, perr := v.parentInBucket(ctx, body)
		if err = perr; err == nil {
			err = volume.Adopt(folder, body.ID, p.segments)
		}
	}
	if err != nil {
		return m, errors.Join(err, gone())
	}
	return v.openFolder(ctx, body, folder, gone)
}

// openFolder opens a folder to be read, of a snapshot or all that it has.
func (v *Volumes) openFolder(ctx context.Context, body catalog.Snapshot, dir string, gone func() error) (moment, error) {
	cfg := volume.Config{Dir: dir, ID: body.ID, Size: body.Size, Epoch: body.Epoch, Base: body.Base, Kept: []content.Position{body.At}, ReadOnly: body.Orphan, Log: v.cfg.Log}
	for _, s := range body.Segments {
		if s.Volume != body.ID {
			cfg.Ancestors = append(cfg.Ancestors, s.Volume)
		}
	}
	var err error
	if body.Head != nil {
		var image *fetch.Image
		image, err = v.cfg.Library.Image(ctx, fetch.Root{Head: *body.Head, Lineage: body.Lineage})
		cfg.Source, cfg.SourceSize, cfg.ChunkSize = image, body.Head.Root.Size, body.Head.Root.ChunkSize
	}
	var vol *volume.Volume
	if err == nil {
		vol, err = volume.Open(cfg)
	}
	if err != nil {
		return moment{}, errors.Join(err, gone())
	}
	return moment{vol, body.At, body.Size, body.Head, body.Lineage, body.Base, true, func() error { return errors.Join(vol.Close(), gone()) }}, nil
}

// nodes reads a node of a map at the origin.
func (v *Volumes) nodes() (fold.Nodes, error) {
	store, err := v.readable()
	if err != nil {
		return nil, err
	}
	return pack.NewReader(store).ReadNode, nil
}
