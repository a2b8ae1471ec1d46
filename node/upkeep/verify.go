package upkeep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/budget"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
	"github.com/grangemesh/grange/origin/garbage/check"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// VerifyKind is what operations are called that check the origin.
	VerifyKind = "verify"
	// sampled is the share of the chunks that a check reads which nobody has asked for.
	sampled = 0.02
	// saveEvery is how often it is written down how far such a check is.
	saveEvery = time.Minute
	// hurtKept bounds the names that are remembered over starts.
	hurtKept = 100
)

// VerifyRequest says what to check.
type VerifyRequest struct {
	ReadData float64 `json:"read_data,omitempty" doc:"the share of the chunks, of 1, that is read: other ones each time; 0 when not given. All else is always read" example:"0.05"`
	After    string  `json:"after,omitempty" maxLength:"512" doc:"go on behind this key, the last of an earlier report"`
}

// checked is what a node remembers of the last check that was due, or of the one that it is at, as JSON.
type checked struct {
	Seed   uint64       `json:"seed"`
	Report check.Report `json:"report"` // so far; its Last is where to go on
	Ended  time.Time    `json:"ended,omitzero"`
}

// Verify begins a check, whose result is a check.Report. It fails where it finds damage.
func (u *Upkeep) Verify(req VerifyRequest) (operations.View, error) {
	if !(req.ReadData >= 0 && req.ReadData <= 1) {
		return operations.View{}, fmt.Errorf("verify: %w: a share of %g of the data; give a part of 1, as 0.05", content.ErrInvalid, req.ReadData)
	}
	at, err := u.readable()
	if err != nil {
		return operations.View{}, fmt.Errorf("verify: %w", err)
	}
	c := check.Config{ReadData: req.ReadData, Seed: rand.Uint64(), After: req.After}
	return u.begin(VerifyKind, origin, func(ctx context.Context, op *operations.Operation) error {
		return u.verify(ctx, at, op, c, func(r check.Report, ended time.Time) {
			if req.After == "" && !ended.IsZero() {
				u.found(r, ended)
			}
		})
	})
}

// verify checks. Note is told of each report, with the time, by the store's clock, when it has ended.
func (u *Upkeep) verify(ctx context.Context, at bucket.Bucket, op *operations.Operation, c check.Config, note func(check.Report, time.Time)) (err error) {
	if c.Source, err = u.source(ctx, at); err != nil {
		return err
	}
	c.Progress = func(r check.Report) {
		op.Update(func(v *operations.View) {
			v.Done = int64(r.StoredBytes + r.SegmentBytes)
			v.Note = fmt.Sprintf("names: %d, hurt: %d", r.Records, r.HurtNames)
		})
		note(r, time.Time{})
	}
	r, err := check.Run(ctx, c)
	r.Hurt, r.Suspect = append([]check.Hurt{}, r.Hurt...), append([]pack.ID{}, r.Suspect...) // [] in JSON
	if len(r.Suspect) > 0 {
		u.cfg.Suspect(ctx, r.Suspect...)
	}
	if err = errors.Join(err, op.Report(r)); err != nil {
		note(r, time.Time{})
		return err
	}
	note(r, c.Source.Now())
	if r.HurtNames > 0 {
		return fmt.Errorf("%w (%d of %d): %s; import again what they are of, or restore it from a copy", errHurt, r.HurtNames, r.Records, some(r.Hurt, hurtName))
	}
	return nil
}

// errHurt is what a check ends with that has found damage.
var errHurt = fmt.Errorf("%w: names are hurt", content.ErrCorrupt)

func hurtName(h check.Hurt) string { return h.Name }

// untilCheck is how long it is to this node's next check, by the store's clock.
func (u *Upkeep) untilCheck(ctx context.Context) (time.Duration, error) {
	at, err := u.mayCollect()
	if err != nil {
		return 0, err
	}
	now, err := clock(budget.With(ctx, budget.NewTurn(budget.Seeding, VerifyKind)), at)
	if err != nil {
		return 0, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch last := u.last; {
	case !last.Ended.IsZero():
		u.checks.Due = last.Ended.Add(u.cfg.VerifyEvery)
	case last.Seed != 0: // it was cut short
		u.checks.Due = now().Add(-u.cfg.VerifyEvery)
	default:
		u.checks.Due = now().Add(u.cfg.VerifyEvery - time.Since(u.begun))
	}
	return u.checks.Due.Sub(now()), nil
}

// verifyNow checks a sample, or goes on with that of an earlier start, and returns when that has ended.
func (u *Upkeep) verifyNow(ctx context.Context) {
	u.mu.Lock()
	had := u.last
	u.mu.Unlock()
	if !had.Ended.IsZero() || had.Seed == 0 {
		had = checked{Seed: rand.Uint64() | 1}
	}
	var saved time.Time
	err := u.wait(ctx, func() (operations.View, error) {
		at, err := u.readable()
		if err != nil {
			return operations.View{}, err
		}
		return u.begin(VerifyKind, origin, func(ctx context.Context, op *operations.Operation) error {
			return u.verify(ctx, at, op, check.Config{ReadData: sampled, Seed: had.Seed, After: had.Report.Last}, func(r check.Report, ended time.Time) {
				if ended.IsZero() && time.Since(saved) < saveEvery {
					return
				}
				saved = time.Now()
				u.remember(checked{had.Seed, plus(had.Report, r), ended})
			})
		})
	})
	if errors.Is(err, content.Running) || errors.Is(err, context.Canceled) {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.checks.Error = ""; err != nil && !errors.Is(err, errHurt) {
		u.checks.Error = content.Line(err)
	}
}

// plus is the report of a check that was done in two parts.
func plus(a, b check.Report) check.Report {
	if b.Last == "" {
		b.Last = a.Last
	}
	b.Records, b.Roots, b.HurtNames = a.Records+b.Records, a.Roots+b.Roots, a.HurtNames+b.HurtNames
	b.Chunks, b.Nodes, b.StoredBytes, b.Unread = a.Chunks+b.Chunks, a.Nodes+b.Nodes, a.StoredBytes+b.StoredBytes, a.Unread+b.Unread
	b.Segments, b.SegmentBytes = a.Segments+b.Segments, a.SegmentBytes+b.SegmentBytes
	b.Hurt, b.Suspect = append(append([]check.Hurt{}, a.Hurt...), b.Hurt...), append(append([]pack.ID{}, a.Suspect...), b.Suspect...)
	return b
}

// found notes what a whole check has found.
func (u *Upkeep) found(r check.Report, ended time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.checks.Report, u.checks.Ended, u.checks.Error = &r, ended, ""
}

// remember keeps how far a check that is due is, over starts too.
func (u *Upkeep) remember(c checked) {
	if !c.Ended.IsZero() {
		u.found(c.Report, c.Ended)
	}
	c.Report.Hurt, c.Report.Suspect = c.Report.Hurt[:min(len(c.Report.Hurt), hurtKept)], c.Report.Suspect[:min(len(c.Report.Suspect), hurtKept)]
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last = c
	b, err := json.Marshal(c)
	if err == nil {
		err = durable.WriteFile(u.cfg.File, b, 0o600)
	}
	if err != nil {
		u.cfg.Log.Warn("after a start of the node the check of the origin begins anew", "file", u.cfg.File, "err", err)
	}
}

// recall reads what is remembered. A file that can't be read is worth no node.
func (u *Upkeep) recall() {
	b, err := os.ReadFile(u.cfg.File)
	if err == nil {
		err = json.Unmarshal(b, &u.last)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.last = checked{}
		u.cfg.Log.Warn("what is remembered of the last check of the origin can't be read; it begins anew", "file", u.cfg.File, "err", err)
	}
	if !u.last.Ended.IsZero() {
		u.checks.Report, u.checks.Ended = &u.last.Report, u.last.Ended
	}
}
