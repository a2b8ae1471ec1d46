package upkeep

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage/replica"
	"github.com/grangemesh/grange/origin/garbage/usage"
)

const (
	// CopyKind is what operations are called that copy the origin, and UsageKind those that weigh it.
	CopyKind  = "copy"
	UsageKind = "du"
)

// CopyRequest says where to copy the origin to.
type CopyRequest struct {
	To string `json:"to" maxLength:"4096" doc:"the URL of another store, as --origin takes it; what is there already is not sent again"`
}

// Copy begins a copy, whose result is a replica.Report. It fails where something could not be copied.
func (u *Upkeep) Copy(ctx context.Context, req CopyRequest) (operations.View, error) {
	from, err := u.readable()
	if err != nil {
		return operations.View{}, fmt.Errorf("copy: %w", err)
	}
	to, err := url.Parse(req.To)
	if err == nil && to.Scheme == "" || req.To == u.cfg.URL {
		err = errors.New("it has to be the URL of another store, as file:///folder or s3://bucket/prefix?endpoint=…&region=…")
	}
	if err == nil && to.Scheme == "https" {
		err = errors.New("nothing is written over https; give the store behind it, as s3://bucket/prefix?endpoint=…&region=…")
	}
	if err != nil {
		return operations.View{}, fmt.Errorf("copy to %.200q: %w: %w", req.To, content.ErrInvalid, err)
	}
	target, err := u.cfg.Target(ctx, req.To)
	if err != nil {
		return operations.View{}, fmt.Errorf("copy to %s: %w", to.Redacted(), err)
	}
	return u.begin(CopyKind, to.Redacted(), func(ctx context.Context, op *operations.Operation) error {
		source, err := u.source(ctx, from)
		if err != nil {
			return err
		}
		r, err := replica.Run(ctx, source, target, replica.Config{Dir: u.cfg.Temp, Progress: func(r replica.Report) {
			op.Update(func(v *operations.View) {
				v.Done, v.Total, v.Bytes["sent"] = r.Present.Bytes+r.Sent.Bytes, r.Looked.Bytes, r.Sent.Bytes
				v.Note = fmt.Sprintf("objects: %d, records: %d", r.Looked.Objects, r.Records)
			})
		}})
		if err == nil || r.Looked.Objects > 0 {
			err = errors.Join(err, op.Report(r))
		}
		if err != nil {
			return err
		}
		if r.Failed > 0 {
			return fmt.Errorf("%w: %d objects and records are not at the copy, as they are damaged here or need what is: %s; `grange origin verify` says which names are hurt, or were mended and use what else is in a damaged pack",
				content.ErrCorrupt, r.Failed, some(r.Failures, func(f replica.Failure) string {
					if f.Name != "" {
						return f.Name
					}
					return f.Key
				}))
		}
		return nil
	})
}

// Usage begins to count who needs what of the origin; the result is a usage.Report.
func (u *Upkeep) Usage() (operations.View, error) {
	at, err := u.readable()
	if err != nil {
		return operations.View{}, fmt.Errorf("du: %w", err)
	}
	return u.begin(UsageKind, origin, func(ctx context.Context, op *operations.Operation) error {
		source, err := u.source(ctx, at)
		if err != nil {
			return err
		}
		r, err := usage.Run(ctx, usage.Config{Source: source, Progress: func(records, packs int64) {
			op.Update(func(v *operations.View) { v.Unit, v.Done, v.Note = "records", records, fmt.Sprintf("packs: %d", packs) })
		}})
		return errors.Join(err, op.Report(r))
	})
}
