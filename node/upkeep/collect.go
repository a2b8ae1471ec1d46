package upkeep

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
)

const (
	// CollectKind is what operations are called that collect garbage.
	CollectKind = "gc"
	// graceMax is the longest grace: who waits longer does not want anything deleted.
	graceMax = 366 * 24 * time.Hour
)

// CollectRequest says what to collect, and how; zero fields are defaults.
type CollectRequest struct {
	Grace  float64 `json:"grace_seconds,omitempty" doc:"from the mark to the end; a day when not given, an hour at least"`
	Share  float64 `json:"share,omitempty" doc:"of all bytes, of 1, how much may be deleted or written anew at once; 0.25 when not given" example:"0.25"`
	Yes    bool    `json:"yes,omitempty" doc:"although it is more than the share"`
	Waste  float64 `json:"waste,omitempty" doc:"of the bytes of packs, of 1, how much may be dead before some are written anew; 0.1 when not given, 1 is to write none anew" example:"0.1"`
	DryRun bool    `json:"dry_run,omitempty" doc:"say what would be done, and write nothing"`
}

// check says what of a request can't be.
func (r CollectRequest) check() error {
	grace := time.Duration(r.Grace * float64(time.Second))
	switch {
	case r.Grace != 0 && (grace < garbage.GraceMin || grace > graceMax || r.Grace > graceMax.Seconds()):
		return fmt.Errorf("gc: %w: a grace of %s; give %dh at least, in which commits that are under way end, and %d days at most", content.ErrInvalid, grace, int(garbage.GraceMin.Hours()), int(graceMax.Hours()/24))
	case !(r.Share >= 0 && r.Share <= 1):
		return fmt.Errorf("gc: %w: a share of %g; give a part of 1, as 0.25", content.ErrInvalid, r.Share)
	case !(r.Waste >= 0 && r.Waste <= 1):
		return fmt.Errorf("gc: %w: a waste of %g; give a part of 1, as 0.1", content.ErrInvalid, r.Waste)
	}
	return nil
}

// mayCollect returns the origin, or says why this node may not collect there.
func (u *Upkeep) mayCollect() (bucket.Bucket, error) {
	at, err := u.cfg.Writable()
	if err != nil {
		return nil, fmt.Errorf("gc: %w; run it on a publisher's or an admin's node that writes to the origin", err)
	}
	if id := u.cfg.Signer.Identity(); !id.MaySign(content.KindCollection, "") {
		return nil, fmt.Errorf("gc: %w: this node has the role %q, and only a publisher or an admin may delete for the mesh; run it on one of theirs, `grange mesh members` says which those are", content.ErrForbidden, id.Role)
	}
	return at, nil
}

// Collect begins a run, whose result is a garbage.Report. A dry one may be asked for beside another.
func (u *Upkeep) Collect(req CollectRequest) (operations.View, error) {
	if err := req.check(); err != nil {
		return operations.View{}, err
	}
	at, err := u.mayCollect()
	if err != nil {
		return operations.View{}, err
	}
	target := origin
	if req.DryRun {
		target += ", dry"
	}
	return u.begin(CollectKind, target, func(ctx context.Context, op *operations.Operation) error {
		report, err := u.collect(ctx, at, req, op)
		found := len(report.Rows)+len(report.Broken) > 0
		if found || err == nil {
			err = errors.Join(err, op.Report(report))
		}
		if !req.DryRun {
			if found {
				u.collected(report)
			}
			_, _ = u.look(ctx, at) // which shows it; it is looked for again
		}
		return err
	})
}

func (u *Upkeep) collect(ctx context.Context, at bucket.Bucket, req CollectRequest, op *operations.Operation) (garbage.Report, error) {
	source, err := u.source(ctx, at)
	if err != nil {
		return garbage.Report{}, err
	}
	op.Update(func(v *operations.View) { v.Unit = "objects" })
	r, err := garbage.Run(ctx, garbage.Config{
		Source: source, Signer: u.cfg.Signer, Grace: time.Duration(req.Grace * float64(time.Second)), Share: req.Share, Yes: req.Yes, Waste: req.Waste, DryRun: req.DryRun,
		Progress: func(p garbage.Progress) {
			op.Update(func(v *operations.View) { v.Note, v.Done, v.Total = p.Phase, p.Done, p.Total })
		},
		Log: u.cfg.Log,
	})
	if err == nil {
		all := r.Live.Objects + r.Waiting.Objects + r.Deleted.Objects
		op.Update(func(v *operations.View) { v.Note, v.Done, v.Total = "", all, all })
	}
	r.Rows, r.Broken = append([]garbage.Row{}, r.Rows...), append([]garbage.Broken{}, r.Broken...) // [] in JSON
	return r, err
}
