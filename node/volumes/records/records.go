// Package records reads and writes what the mesh has of volumes and snapshots, as what the
// records say.
package records

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// Registry keeps the records of volumes and snapshots. ErrUnavailable means that no
// origin could be asked, by this node or a member for it.
type Registry interface {
	Volume(ctx context.Context, name string) (catalog.Record, error)
	// SureVolume is Volume, and ErrUnavailable where a single member may have made it up.
	SureVolume(ctx context.Context, name string) (catalog.Record, error)
	// Snapshot returns the record of NAME@N.
	Snapshot(ctx context.Context, name string) (catalog.Record, error)
	// Volumes returns the records of all volumes that this node may know, by name, and
	// Snapshots those of a volume's snapshots, "" for all.
	Volumes(ctx context.Context) []catalog.Record
	Snapshots(ctx context.Context, volume string) []catalog.Record
	// Commit writes a record over its Base, nil for a name that is free: it is a
	// *catalog.TakenError, ErrConflict or ErrExists if another is there. Where what it names
	// is gone, it is as it was before, and the error content.Gone. The Farm is set by it.
	Commit(ctx context.Context, ch catalog.Change) (catalog.Record, error)
	// Delete writes that the name of a record is free.
	Delete(ctx context.Context, base catalog.Record) error
}

// Tries bounds how often a record is read again that others write meanwhile.
const Tries = 8

// Records are those of a registry.
type Records struct {
	Registry Registry
	Codec    *content.Codec
}

// Volume returns what the mesh knows of a name. Of one that is free r is its last deletion.
func (x Records) Volume(ctx context.Context, name string) (r catalog.Record, body catalog.Volume, err error) {
	if r, err = x.Registry.Volume(ctx, name); err == nil {
		body, err = catalog.DecodeVolume(x.Codec, r.Body)
	}
	return r, body, err
}

// SureVolume is Volume, and ErrUnavailable where a single member may have made it up.
func (x Records) SureVolume(ctx context.Context, name string) (r catalog.Record, body catalog.Volume, err error) {
	if r, err = x.Registry.SureVolume(ctx, name); err == nil {
		body, err = catalog.DecodeVolume(x.Codec, r.Body)
	}
	return r, body, err
}

// Freed reports whether a record says that its name was freed since then.
func Freed(r catalog.Record, since time.Time) bool { return r.Tombstone && r.SignedAt.After(since) }

// Snapshot returns what the mesh knows of a snapshot; its name is checked.
func (x Records) Snapshot(ctx context.Context, id string) (r catalog.Record, body catalog.Snapshot, err error) {
	if err := content.KindSnapshot.CheckName(id); err != nil {
		return r, body, err
	}
	if r, err = x.Registry.Snapshot(ctx, id); err == nil {
		body, err = catalog.DecodeSnapshot(x.Codec, id, r.Body)
	}
	if errors.Is(err, content.ErrNotFound) {
		err = fmt.Errorf("%w; `grange snapshot ls` lists those that are there", err)
	}
	return r, body, err
}

// Volumes yields all that can be read, by name.
func (x Records) Volumes(ctx context.Context) iter.Seq2[catalog.Record, catalog.Volume] {
	return func(yield func(catalog.Record, catalog.Volume) bool) {
		for _, r := range x.Registry.Volumes(ctx) {
			if body, err := catalog.DecodeVolume(x.Codec, r.Body); err == nil && !yield(r, body) {
				return
			}
		}
	}
}

// Snapshots yields those of a volume, of all with "", that can be read.
func (x Records) Snapshots(ctx context.Context, volume string) iter.Seq2[catalog.Record, catalog.Snapshot] {
	return func(yield func(catalog.Record, catalog.Snapshot) bool) {
		for _, r := range x.Registry.Snapshots(ctx, volume) {
			if body, err := catalog.DecodeSnapshot(x.Codec, r.Name, r.Body); err == nil && !yield(r, body) {
				return
			}
		}
	}
}

// PutVolume writes a volume's record; see Registry's Commit.
func (x Records) PutVolume(ctx context.Context, name string, base *catalog.Record, body catalog.Volume) (catalog.Record, error) {
	b, err := body.Encode(x.Codec)
	if err != nil {
		return catalog.Record{}, err
	}
	return x.Registry.Commit(ctx, catalog.Change{Kind: content.KindVolume, Name: name, Base: base, Body: b, Since: body.Since})
}

// Register writes the record of a new volume, over that of the name's last deletion if it had one.
func (x Records) Register(ctx context.Context, name string, gone catalog.Record, body catalog.Volume) (catalog.Record, error) {
	if gone.Tombstone && gone.ETag != "" {
		return x.PutVolume(ctx, name, &gone, body)
	}
	return x.PutVolume(ctx, name, nil, body)
}

// PutSnapshot writes a snapshot's record; see Registry's Commit.
func (x Records) PutSnapshot(ctx context.Context, base *catalog.Record, body catalog.Snapshot) error {
	b, err := body.Encode(x.Codec)
	if err == nil {
		_, err = x.Registry.Commit(ctx, catalog.Change{Kind: content.KindSnapshot, Name: body.Ref().RecordName(), Base: base, Body: b, Since: body.Since, Damaged: body.Orphan})
	}
	return err
}

// ChangeSnapshot writes what change makes of a record, and returns what stands then. change
// reports whether it has changed anything.
func (x Records) ChangeSnapshot(ctx context.Context, id string, change func(*catalog.Snapshot) bool) (catalog.Snapshot, error) {
	return again(func() (catalog.Record, catalog.Snapshot, error) { return x.Snapshot(ctx, id) }, change, func(base *catalog.Record, body catalog.Snapshot) error {
		return x.PutSnapshot(ctx, base, body)
	})
}

// Hold writes the record of a snapshot once more, when that of its volume says that it is being
// rolled back to it: who removes one has looked at the volume's before. ErrNotFound is signed.
func (x Records) Hold(ctx context.Context, id string) error {
	_, err := x.ChangeSnapshot(ctx, id, func(*catalog.Snapshot) bool { return true })
	if errors.Is(err, content.ErrNotFound) {
		if r, _, _ := x.Snapshot(ctx, id); !r.Tombstone {
			err = fmt.Errorf("snapshot %s: %w: nobody has signed that it was deleted", id, content.ErrUnavailable)
		}
	}
	return err
}

func again[B any](read func() (catalog.Record, B, error), change func(*B) bool, write func(*catalog.Record, B) error) (B, error) {
	for range Tries {
		r, body, err := read()
		if err != nil || !change(&body) {
			return body, err
		}
		if err = write(&r, body); !IsOvertaken(err) {
			return body, err
		}
	}
	var none B
	return none, Busy()
}

// Folded is Volume for who reads what the bucket has: ErrUnavailable while it may be half a rollback.
func (x Records) Folded(ctx context.Context, name string) (r catalog.Record, body catalog.Volume, err error) {
	if r, body, err = x.Volume(ctx, name); err == nil && body.Rolling != 0 {
		err = fmt.Errorf("%w: it is being rolled back to %s@%d: read that, or try again once it is attached", content.ErrUnavailable, name, body.Rolling)
	}
	return r, body, err
}

// Share has the record of a volume say that others name all that is in the bucket of it.
func (x Records) Share(ctx context.Context, name string) (catalog.Volume, error) {
	return again(func() (catalog.Record, catalog.Volume, error) { return x.Folded(ctx, name) }, func(body *catalog.Volume) bool {
		through := body.Through().Seq
		shares := through > body.Shared
		body.Shared = max(through, body.Shared)
		return shares
	}, func(base *catalog.Record, body catalog.Volume) error {
		_, err := x.PutVolume(ctx, name, base, body)
		return err
	})
}

// MakeDurable has the record of a snapshot name what its volume's does, up to a number of
// segments. One that has no record was given up.
func (x Records) MakeDurable(ctx context.Context, ref content.Ref, now catalog.Volume, segments int) error {
	_, err := x.ChangeSnapshot(ctx, ref.RecordName(), func(body *catalog.Snapshot) bool {
		if body.Durable || body.ID != now.ID {
			return false
		}
		body.Folded, body.Durable = now.Folded, true
		body.Segments = now.Segments[:segments]
		return true
	})
	if errors.Is(err, content.ErrNotFound) {
		return nil
	}
	return err
}

// RemoveSnapshot deletes a snapshot that its volume is not being rolled back to, and returns
// what it was; ErrNotFound also for one that is not of that volume, zero for any. Who rolls a volume
// back writes the snapshot's record after the volume's: so one of the two is seen here.
func (x Records) RemoveSnapshot(ctx context.Context, id string, of content.VolumeID) (catalog.Snapshot, error) {
	for range Tries {
		r, body, err := x.Snapshot(ctx, id)
		if err == nil && of != (content.VolumeID{}) && body.ID != of {
			err = content.ErrNotFound
		}
		if err != nil {
			return body, err
		}
		_, now, err := x.SureVolume(ctx, body.Volume)
		switch {
		case err != nil && !errors.Is(err, content.ErrNotFound):
			return body, fmt.Errorf("snapshot %s: whether its volume needs it can't be told: %w", id, err)
		case err == nil && now.ID == body.ID && now.Rolling == body.Number && !body.Orphan:
			return body, fmt.Errorf("snapshot %s: %w: volume %s is being rolled back to it; attach that, and it is completed", id, content.ErrConflict, body.Volume)
		}
		if err = x.Registry.Delete(ctx, r); !IsOvertaken(err) {
			return body, err
		}
	}
	return catalog.Snapshot{}, Busy()
}

// Busy says that Tries were not enough.
func Busy() error {
	return fmt.Errorf("%w: others write its record all the time, or the origin can't be written; try again when `grange status` says that it is ok", content.ErrUnavailable)
}

// IsOvertaken reports whether another record was written first.
func IsOvertaken(err error) bool {
	return !errors.Is(err, content.Gone) && (errors.Is(err, content.ErrConflict) || errors.Is(err, content.ErrExists))
}

// Purge deletes snapshots: what they hold goes with the next collection of garbage, but for what
// forks have of it.
func (x Records) Purge(ctx context.Context, snapshots []catalog.Record) error {
	var errs []error
	for _, r := range snapshots {
		if err := x.Registry.Delete(ctx, r); err != nil {
			errs = append(errs, fmt.Errorf("remove snapshot %s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}
