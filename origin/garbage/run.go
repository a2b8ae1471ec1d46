package garbage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/index"
)

// leftoverAge is how old an upload in parts is at least that was never ended: none takes as long.
const leftoverAge = 48 * time.Hour

// Run is one run of a collection: it marks, deletes what a run before has marked and is dead still, and gives tombstones to
// what is dead by now. It takes the next epoch of the collection's record: a run of another member that is at it is
// content.Running, and one that another has overtaken ends with content.ErrFenced, having deleted nothing since. Where
// anything is not understood, or contradicts itself, it deletes nothing; where more would go than may, it says so with
// content.ErrConflict, and all but that is done. It may be ended at any time, and begun again. The report is of what was
// done, also beside an error.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.complete(); err != nil {
		return Report{}, err
	}
	at := &dated{Bucket: cfg.Bucket}
	cfg.Bucket, cfg.Now = at, at.now
	r := &run{cfg: cfg, at: at}
	err := catalog.CheckMesh(ctx, at, cfg.Verifier.Mesh())
	r.report = Report{Totals: Totals{At: at.now()}, Dry: cfg.DryRun}
	if err == nil && !cfg.DryRun {
		if err = probe(ctx, at); err == nil {
			r.turn, err = takeTurn(ctx, cfg, at)
		}
	}
	if err == nil {
		err = r.collect(ctx)
	}
	if r.turn != nil && r.turn.record.ETag != "" && !errors.Is(err, content.ErrFenced) {
		err = errors.Join(err, r.turn.end(context.WithoutCancel(ctx), r.report, err))
	}
	r.report.Requests = at.requests.Load()
	if err != nil {
		err = fmt.Errorf("collect the garbage of the origin: %w", err)
	}
	return r.report, err
}

// probe finds out whether the store can be relied upon; a reply that was lost says nothing of that.
func probe(ctx context.Context, at *dated) (err error) {
	for range secureTries {
		if err = bucket.ProbeOrder(ctx, at); !errors.Is(err, bucket.ErrUnknown) {
			return err
		}
	}
	return err
}

func (cfg *Config) complete() error {
	cfg.Grace = cmp.Or(cfg.Grace, GraceDefault)
	cfg.Share = cmp.Or(cfg.Share, ShareDefault)
	cfg.Waste = cmp.Or(cfg.Waste, WasteDefault)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	if cfg.Progress == nil {
		cfg.Progress = func(Progress) {}
	}
	switch {
	case cfg.Bucket == nil || cfg.Verifier == nil:
		return fmt.Errorf("collect garbage: %w: no bucket, or nobody's", content.ErrInvalid)
	case cfg.Grace < GraceMin:
		return fmt.Errorf("collect garbage: %w: a grace of %s, want %s at least: what is being published, or read, has that long", content.ErrInvalid, cfg.Grace, GraceMin)
	case cfg.Share < 0 || cfg.Share > 1 || cfg.Waste > 1:
		return fmt.Errorf("collect garbage: %w: a share of %g and a waste of %g, want parts of 1", content.ErrInvalid, cfg.Share, cfg.Waste)
	case !cfg.DryRun && !cfg.Signer.Identity().MaySign(content.KindCollection, ""):
		return fmt.Errorf("collect garbage: %w: publishers and admins of the mesh do, and this member's role is %q", content.ErrForbidden, cfg.Signer.Identity().Role)
	}
	return nil
}

// run is one that is under way.
type run struct {
	cfg    Config
	at     *dated
	turn   *turn // nil where nothing is written
	marks  *marks
	plan   *plan
	report Report
}

func (r *run) collect(ctx context.Context) error {
	s, err := look(ctx, r.at)
	if err != nil {
		return err
	}
	r.cfg.Progress(Progress{Phase: "records"})
	wanted := map[pack.ID]bool{}
	for _, b := range s.batches {
		for _, key := range b.Repack {
			if id, err := pack.ParseKey(key); err == nil {
				wanted[id] = true
			}
		}
	}
	r.marks, err = mark(ctx, r.cfg.Source, s, wanted, func(done int64) { r.cfg.Progress(Progress{Phase: "records", Done: done}) })
	r.report.Broken = r.marks.broken
	if err == nil && r.turn != nil && !r.marks.turn {
		err = fmt.Errorf("%w: its list of all records left out the one that this run has just written", bucket.ErrDoubt)
	}
	if err == nil {
		err = r.at.doubted()
	}
	if err != nil {
		return err
	}
	t := terms{now: r.at.now(), grace: r.cfg.Grace, share: r.cfg.Share, yes: r.cfg.Yes, waste: r.cfg.Waste}
	if r.turn != nil {
		t.epoch = r.turn.body.Epoch
	}
	r.plan = decide(r.marks, t)
	if r.report.Beyond = r.plan.beyond(r.marks, t); r.report.Beyond {
		r.plan.leave()
	}
	r.report.Epoch, r.report.Rows, r.report.Live, r.report.Waiting, r.report.Next = t.epoch, r.plan.sorted(), r.plan.live, r.plan.waiting, r.plan.next
	r.report.Marked, r.report.Going = r.plan.marked, r.plan.going
	if r.cfg.DryRun {
		return nil
	}
	if err := r.write(ctx); err != nil {
		return err
	}
	if r.report.Beyond {
		return fmt.Errorf("%w: %s of %s would go at once, and unasked a run deletes %g %% at most: look at it with --dry-run, and give --yes", content.ErrConflict, bytesOf(r.plan.going.Bytes), bytesOf(r.marks.total.Bytes), 100*t.share)
	}
	if err := r.delete(ctx); err != nil {
		return err
	}
	return r.tidy(ctx)
}

// bytesOf is a size for people.
func bytesOf(n int64) string {
	const unit = 1024
	x, suffix := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if x < unit {
			break
		}
		x, suffix = x/unit, next
	}
	return fmt.Sprintf("%.4g %s", x, suffix)
}

// write puts the tombstones of what is dead by now, and takes those away of what lives.
func (r *run) write(ctx context.Context) error {
	r.report.Marked = Amount{}
	for _, b := range r.plan.release {
		if err := r.turn.hold(ctx); err != nil {
			return err
		}
		if b.size() == 0 {
			b.Condemned = true // nobody can put anything in it any more
		}
		_, err := b.put(ctx, r.at)
		if err == nil && b.Condemned {
			err = r.at.Delete(ctx, b.key)
		}
		if err != nil && !errors.Is(err, bucket.ErrPrecondition) { // a committer was quicker: the next run looks again
			return err
		}
	}
	for i := range r.plan.fresh {
		if err := r.turn.hold(ctx); err != nil {
			return err
		}
		b := &r.plan.fresh[i]
		b.key = string(content.KeyGarbage) + string(pack.FreshID(content.Mesh(), r.at.now())) + batchSuffix
		var err error
		if *b, err = b.put(ctx, r.at); err != nil {
			return err
		}
		for key := range b.keys() {
			o, _ := r.marks.object(key)
			r.report.Marked.Add(o.size)
			r.report.Waiting.Add(o.size)
		}
	}
	return nil
}

// delete condemns what is dead still when its grace is over, and deletes that, and what a run before has condemned. What is
// written anew comes last: it takes room, which a store that is full has by then.
func (r *run) delete(ctx context.Context) error {
	all := slices.Concat(r.plan.finish, r.plan.condemn)
	slices.SortStableFunc(all, func(a, b Batch) int { return min(len(a.Repack), 1) - min(len(b.Repack), 1) })
	for _, b := range all {
		var err error
		if !b.Condemned {
			if err = r.turn.hold(ctx); err == nil {
				b, err = b.condemn(ctx, r.at)
			}
		}
		if err == nil {
			err = r.carryOut(ctx, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// condemn changes a batch so that no committer can take anything out of it any more, less what some have taken out since.
func (b Batch) condemn(ctx context.Context, at bucket.Bucket) (Batch, error) {
	var err error
	for range secureTries {
		b.Condemned = true
		now, perr := b.put(ctx, at)
		if err = perr; !errors.Is(err, bucket.ErrPrecondition) {
			return now, err
		}
		now, rerr := readBatch(ctx, at, b.key)
		if errors.Is(rerr, content.ErrNotFound) {
			return Batch{}, nil
		}
		if rerr != nil {
			return b, rerr
		}
		if now.Condemned {
			return now, fmt.Errorf("%w: another run has condemned %s", content.ErrFenced, b.key)
		}
		still := map[string]bool{}
		for key := range now.keys() {
			still[key] = true
		}
		b = b.without(func(key string) bool { return !still[key] })
		b.etag = now.etag
	}
	return b, err
}

// carryOut deletes all of a condemned batch, and then the batch. What a record names by now stays, and the batch with it:
// whoever has condemned it may be about to delete it still, so that nobody else is to name it.
func (r *run) carryOut(ctx context.Context, b Batch) error {
	if b.key == "" {
		return nil
	}
	if err := r.turn.hold(ctx); err != nil {
		return err
	}
	group, deleting := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	gone := make([]object, len(b.Delete))
	kept := 0
	for i, key := range b.Delete {
		o, there := r.marks.object(key)
		if !there {
			continue
		}
		if o.stays() {
			kept++
			continue
		}
		group.Go(func() error {
			err := r.at.Delete(deleting, key)
			if err == nil {
				gone[i] = o
			}
			return err
		})
	}
	err := group.Wait()
	for _, o := range gone { // noted here, as others are looked up meanwhile
		if o.state != nil {
			*o.state |= isGone
			r.report.Deleted.Add(o.size)
		}
	}
	r.cfg.Progress(Progress{Phase: "delete", Done: r.report.Deleted.Objects, Total: r.plan.going.Objects})
	if err == nil {
		err = r.repack(ctx, b.Repack)
	}
	switch {
	case err != nil:
		return err
	case kept > 0:
		r.cfg.Log.Warn("what was condemned stays, as records name it or may", "batch", b.key, "objects", kept)
		return nil
	}
	return r.at.Delete(ctx, b.key)
}

// tidy merges what importers look up, and removes what writers have left behind.
func (r *run) tidy(ctx context.Context) error {
	for _, key := range r.marks.probes {
		if err := r.at.Delete(ctx, key); err != nil {
			return err
		}
	}
	for i, scope := range r.marks.scopes {
		r.cfg.Progress(Progress{Phase: "index", Done: int64(i), Total: int64(len(r.marks.scopes))})
		if err := r.turn.hold(ctx); err != nil {
			return err
		}
		out, err := index.Merge(ctx, r.at, scope, r.present, func() pack.ID { return pack.FreshID(scope, r.at.now()) })
		if err != nil {
			return err
		}
		r.also(Row{What: "index", Scope: scope.String(), Why: "many, or of what is gone", Then: "was merged", Amount: Amount{int64(out.Deleted), out.Freed}})
	}
	n, bytes, err := bucket.Leftovers(ctx, r.at, leftoverAge)
	r.also(Row{What: "upload", Why: "never ended", Then: "was removed", Amount: Amount{int64(n), bytes}})
	return err
}

// also reports what was done beside the plan.
func (r *run) also(row Row) {
	if row.Objects > 0 {
		r.report.Rows = append(r.report.Rows, row)
	}
}

// present says what is left of a pack, for the index; a negative size is of one that may have come since all were listed.
func (r *run) present(id pack.ID) (size int64, ok bool) {
	at := r.marks.packs.find(id)
	if at == nil {
		_, x := parts(id)
		return -1, x.hour >= hourOf(r.marks.began.Add(-holdSlack))
	}
	return int64(at.size), !at.state.is(isGone | isStub)
}
