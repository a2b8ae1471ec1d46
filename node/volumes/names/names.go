// Package names says what became of names that no volume of a node has: who has them, since
// when, and what to do; and frees them, where that is asked for.
package names

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/grangemesh/grange/node/volumes/index"
	"github.com/grangemesh/grange/node/volumes/records"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// Names are those of the mesh, for a node of a farm that is Self. Who names a node to people,
// Away says whether it is away, and Call asks it.
type Names struct {
	Records records.Records
	Index   *index.Index
	Self    trust.PublicKey
	Farm    string
	Who     func(trust.PublicKey) string
	Away    func(context.Context, trust.PublicKey) bool
	Call    func(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error)
	Log     *slog.Logger
}

// SnapshotMethod has the node that a volume is attached to make a snapshot of it.
const SnapshotMethod = "volume/snapshot"

type snapshotRequest struct {
	Name string             `json:"name"`
	Spec terms.SnapshotSpec `json:"spec"`
}

// Snapshot asks the node that has a volume for one.
func (x Names) Snapshot(ctx context.Context, name string, spec terms.SnapshotSpec) (view terms.SnapshotView, err error) {
	r, body, err := x.Records.Volume(ctx, name)
	switch {
	case err != nil, r.Farm != x.Farm:
		return view, x.Elsewhere(ctx, name)
	case body.Holder == x.Self || body.State == catalog.Released:
		return view, fmt.Errorf("%w: it is attached nowhere, and stays as it is: attach it first", content.ErrConflict)
	}
	q, _ := json.Marshal(snapshotRequest{name, spec}) // of texts
	b, err := x.Call(ctx, body.Holder, SnapshotMethod, q)
	if errors.Is(err, content.ErrUnavailable) {
		return view, fmt.Errorf("%w: %s has it, and does not answer: volume:%s?at=folded is what the bucket has, which is what was written until %s", content.ErrConflict, x.Who(body.Holder), name, terms.MomentOr(body.FoldedAt, "it was made"))
	}
	if err == nil {
		err = json.Unmarshal(b, &view)
	}
	return view, err
}

// Released reports whether nobody has a volume of this farm, so that the bucket has all of it.
func (x Names) Released(ctx context.Context, name string) bool {
	r, body, err := x.Records.Volume(ctx, name)
	return err == nil && r.Farm == x.Farm && body.State == catalog.Released
}

// AnswerSnapshot answers that, where has says that the volume is attached.
func AnswerSnapshot(ctx context.Context, body []byte, has func(name string) bool, make func(context.Context, string, terms.SnapshotSpec) (terms.SnapshotView, error)) ([]byte, error) {
	var q snapshotRequest
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("call %s: %w: %w", SnapshotMethod, content.ErrInvalid, err)
	}
	if !has(q.Name) {
		return nil, fmt.Errorf("volume %q: %w here", q.Name, content.ErrNotFound)
	}
	view, err := make(ctx, q.Name, q.Spec)
	if err != nil {
		return nil, err
	}
	return json.Marshal(view)
}

// Elsewhere says what became of a name that no volume here has: ErrNotFound, with who
// has it, or that nobody of the mesh has; ErrUnavailable when that can't be told.
func (x Names) Elsewhere(ctx context.Context, name string) error {
	r, body, err := x.Records.Volume(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return fmt.Errorf("%w: no volume of the mesh has this name; `grange volume create` makes one, with --from or --size", content.ErrNotFound)
	case err != nil:
		return fmt.Errorf("%w here, and whether another node has it can't be told: %w", content.ErrNotFound, err)
	}
	return fmt.Errorf("%w on this node: %s", content.ErrNotFound, x.holding(ctx, r, body))
}

// Remove deletes a name that no volume here has. Who holds it has to do so,
// unless it is away, or the volume's folder is away from here, and this is forced: its
// data stay on their disk, under a name that is free.
func (x Names) Remove(ctx context.Context, name string, spec terms.RemoveSpec) error {
	old := x.purged(ctx, name, spec)
	r, body, err := x.Records.Volume(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return x.Records.Purge(ctx, old)
	case err != nil:
		return fmt.Errorf("it is not here, and whether another node has it can't be told: %w", err)
	case !spec.Means(body.ID):
		return nil
	}
	if !spec.Force || body.Holder != x.Self && !x.Away(ctx, body.Holder) {
		return x.Held(ctx, r, body)
	}
	if err := x.Records.Registry.Delete(ctx, r); err != nil {
		return fmt.Errorf("of farm %s: %w", r.Farm, err)
	}
	x.Log.Warn("the name of a volume is free that was given up by force", "volume", name, "holder", x.Who(body.Holder))
	return x.Records.Purge(ctx, old)
}

// Holding says who holds a name, or what is wrong with what is here of it.
func (x Names) Holding(r catalog.Record, body catalog.Volume) string {
	if body.Holder != x.Self || body.State == catalog.Released {
		return terms.Holding(x.Who(body.Holder), r, body)
	}
	if e, here := x.Index.Get(r.Name); here && e.ID == body.ID {
		return terms.Older(r, body)
	}
	return terms.Missing(x.Index.Path(index.Entry{Volume: body}), x.Index.Has(body.ID), r)
}

// holding is Holding with the ways out.
func (x Names) holding(ctx context.Context, r catalog.Record, body catalog.Volume) string {
	if body.Holder == x.Self || body.State == catalog.Released {
		return x.Holding(r, body)
	}
	return x.Holding(r, body) + "; " + terms.WaysOut(x.Away(ctx, body.Holder), r)
}

// Held is the conflict with who holds a name by its record.
func (x Names) Held(ctx context.Context, r catalog.Record, body catalog.Volume) error {
	return &terms.HeldError{Holder: x.Who(body.Holder), Policy: body.Policy, FoldedAt: body.FoldedAt, Text: x.holding(ctx, r, body)}
}

// Taken says who has a name, where another was quicker to take it.
func (x Names) Taken(ctx context.Context, err error) error {
	var by *catalog.TakenError
	if !errors.As(err, &by) {
		return err
	}
	body, derr := catalog.DecodeVolume(x.Records.Codec, by.Current.Body)
	if derr != nil {
		return err
	}
	return x.Held(ctx, by.Current, body)
}

// purged are the snapshots that go with a name, if that is asked for: those that are there before
// its record was read. Once it is free it may be another's, with snapshots of its own.
func (x Names) purged(ctx context.Context, name string, spec terms.RemoveSpec) []catalog.Record {
	if !spec.Purge {
		return nil
	}
	return x.Records.Registry.Snapshots(ctx, name)
}

// NoSnapshotYet is the conflict with what another has taken from here.
func NoSnapshotYet() error {
	return fmt.Errorf("%w: another node has it, and what it has here alone is no snapshot yet: try again when `grange snapshot ls` shows it, or use --purge", content.ErrConflict)
}

// RemoveOwn deletes the record of a volume of this node, if it has one, and with purge the
// snapshots of that name.
func (x Names) RemoveOwn(ctx context.Context, e index.Entry, incarnation uint64, spec terms.RemoveSpec) error {
	old := x.purged(ctx, e.Name, spec)
	r, body, err := x.Records.SureVolume(ctx, e.Name)
	mine := e.Committed && e.Right(x.Self, incarnation).IsMine(body) || !e.Committed && body.ID == e.ID && body.Holder == x.Self
	switch {
	case errors.Is(err, content.ErrNotFound):
	case err != nil && !e.Committed && len(e.Tried) == 0 && errors.Is(err, content.ErrUnavailable): // nobody was ever told of it
		return nil
	case err != nil:
		return err
	case !mine && e.Empty && (body.State != catalog.Released || body.ID != e.ID):
		return x.Remove(ctx, e.Name, spec)
	case !mine && !e.Empty && body.ID == e.ID && !spec.Purge:
		return NoSnapshotYet()
	case !mine && !e.Empty:
		return nil // it is of another volume that has the name, or of another's, with its snapshots
	default:
		if err := x.Records.Registry.Delete(ctx, r); err != nil {
			return err
		}
	}
	return x.Records.Purge(ctx, old)
}
