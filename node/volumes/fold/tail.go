package fold

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// tailReads is how many tails are read at once by who takes a volume over, and tailSmall
	// what of each: a small one whole.
	tailReads = 16
	tailSmall = catalog.TailHeader + 16<<10
	// tailsMax is how many tails a record names at most: to read them takes seconds, and 64
	// MiB of memory. Of four flushes a second a fold finds as many.
	tailsMax = 4096

	// takingMin is how long a writer whose epoch was ended waits for the node that did it to take
	// the volume: as holders do. It doubles up to takingMax, which guests bear, while one comes
	// again within takingAgain. takingLook is how often the record is read meanwhile.
	takingMin   = 5 * time.Second
	takingMax   = 2 * time.Minute
	takingAgain = 5 * time.Minute
	takingLook  = time.Second
	// aheadMax is how many places beyond the last tail an epoch is ended at, where its writer is
	// quicker than who takes the volume.
	aheadMax = 64
)

// Tails make durable at the origin what flushes of a volume acknowledge: what came since
// the last one, in one put, in the order of the journal, under the policy `origin`. They go on
// over its epochs, those of this process behind those that were found. Safe for concurrent use.
type Tails struct {
	// Bucket is where they go, and Dir says where working files of the volume do.
	Bucket func() (bucket.Bucket, error)
	Dir    func() string
	// Ends are places that the record may come to, where a tail is to end: those of
	// snapshots that are not durable yet. nil is none.
	Ends func() []content.Position
	// Owned reads the record: ErrFenced where the volume is another's. Outbid takes an epoch later
	// than one that another node has ended, and not taken the volume: it may have died in between.
	Owned  func(context.Context) error
	Outbid func(ctx context.Context, epoch uint64) error

	begun   atomic.Bool // last is known; changes with mu
	mu      sync.Mutex  // held while one is put: who waits shares the next
	journal Journal
	last    content.Position
	held    bool                 // last is kept, so that the next one begins just there
	next    *tail                // whose fate is not known
	put     []content.SegmentRef // that the record does not cover yet
	outbid  time.Time            // when that was done last,
	patient time.Duration        // and what was waited before
}

// tail is one that is being put.
type tail struct {
	ref  content.SegmentRef
	file *working
}

// Through is up to where the origin has the journal, which is a volume's lag: where EndEpoch has
// found tails, or they were put since.
func (t *Tails) Through() content.Position {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// HasEnded reports whether EndEpoch has.
func (t *Tails) HasEnded() bool { return t.begun.Load() }

// Close closes what is kept of a tail whose fate is not known: nobody flushes any more, and
// the journal is closed too.
func (t *Tails) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin(t.last)
	t.held = false
}

// Begin has tails of a journal that is not open yet go on behind a place.
func (t *Tails) Begin(after content.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begin(after)
	t.held, t.put = false, nil
	t.begun.Store(true)
}

// begin has the next tail begin behind a place. Called with mu.
func (t *Tails) begin(after content.Position) {
	if t.next != nil {
		t.next.file.close()
	}
	t.last, t.next = after, nil
}

// Of returns the tails of a volume whose record is this node's, nil where its flushes don't
// go to the origin: then the journal need not keep where the last one ends. One that got this
// policy while it is served begins behind its record.
func (t *Tails) Of(body catalog.Volume, j Journal) *Tails {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.journal = j
	isOrigin, folded := body.Policy == catalog.PolicyOrigin, t.last.Seq < body.Through().Seq // under another policy since
	if !isOrigin || folded {
		t.release()
	}
	if !isOrigin {
		return nil
	}
	if folded || !t.begun.Load() {
		t.begin(body.Through())
		t.begun.Store(true)
	}
	return t
}

// release gives back that last is kept. Called with mu.
func (t *Tails) release() {
	if t.held {
		t.journal.Release(t.last)
	}
	t.held = false
}

// Persist returns when the origin has all of the journal up to a place, as a volume.Config has
// it. That another node has ended the epoch is content.ErrFenced; nil Tails are ErrUnavailable.
func (t *Tails) Persist(ctx context.Context, upTo content.Position) error {
	if t == nil {
		return fmt.Errorf("%w: whether the volume is this node's still is not known", content.ErrUnavailable)
	}
	return t.outbidding(ctx, func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		for t.last.Seq < upTo.Seq {
			through, err := t.putUp(ctx)
			if err != nil {
				return fmt.Errorf("flush to the origin: %w", err)
			}
			t.journal.Release(through)
		}
		return nil
	})
}

// endedEpoch says that another node has ended an epoch; it is an ErrFenced.
type endedEpoch struct {
	epoch uint64
	at    content.Position
}

func (e endedEpoch) Error() string {
	return fmt.Sprintf("%v: another node has ended epoch %d at %v", content.ErrFenced, e.epoch, e.at)
}

func (e endedEpoch) Unwrap() error { return content.ErrFenced }

// outbidding does something, and once more under a later epoch where this one was ended by a node
// that does not take the volume.
func (t *Tails) outbidding(ctx context.Context, do func() error) error {
	err := do()
	if e := (endedEpoch{}); errors.As(err, &e) && t.Outbid != nil && t.isLeft(ctx) && t.Outbid(ctx, e.epoch) == nil {
		err = do()
	}
	return err
}

// isLeft reports whether who has ended an epoch does not take the volume: it was given time
// for that, more each time that it comes again.
func (t *Tails) isLeft(ctx context.Context) bool {
	t.mu.Lock()
	wait := min(2*t.patient, takingMax)
	if wait == 0 || time.Since(t.outbid) > takingAgain {
		wait = takingMin
	}
	t.mu.Unlock()
	over, look := time.After(wait), time.Tick(takingLook)
	for {
		if errors.Is(t.Owned(ctx), content.ErrFenced) {
			return false
		}
		select {
		case <-look:
			continue
		case <-over:
		case <-ctx.Done():
			return false
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.outbid, t.patient = time.Now(), wait
		return true
	}
}

// seal ends the open segment of the journal where a tail ends, and keeps that place: whoever
// walks the tails from there on finds the next one.
func (t *Tails) seal(ctx context.Context) (through content.Position, err error) {
	err = t.outbidding(ctx, func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		through, err = t.putUp(ctx)
		return err
	})
	return through, err
}

// putUp puts the tail whose fate is not known, and all that was written until now. It
// returns where that ends, which is kept.
func (t *Tails) putUp(ctx context.Context) (through content.Position, err error) {
	if t.next != nil {
		if err := t.putNext(ctx); err != nil {
			return through, err
		}
	}
	if through, err = t.journal.Seal(ctx); err != nil {
		return through, err
	}
	for _, end := range t.ends(through) {
		if err = t.prepare(ctx, end); err == nil {
			err = t.putNext(ctx)
		}
		if err != nil {
			t.journal.Release(through)
			return through, err
		}
	}
	return through, nil
}

// ends are where the next tails end that go up to a place.
func (t *Tails) ends(through content.Position) (out []content.Position) {
	if t.Ends != nil {
		for _, at := range t.Ends() {
			if at.Seq > t.last.Seq && at.Seq < through.Seq {
				out = append(out, at)
			}
		}
	}
	if through.Seq > t.last.Seq {
		out = append(out, through)
	}
	slices.SortFunc(out, func(a, b content.Position) int { return cmp.Compare(a.Seq, b.Seq) })
	return slices.Compact(out)
}

// prepare makes the next tail.
func (t *Tails) prepare(ctx context.Context, through content.Position) error {
	file, err := newWorking(t.Dir())
	if err != nil {
		return err
	}
	_, err = file.Write(make([]byte, catalog.TailHeader))
	var ref content.SegmentRef
	if err == nil {
		ref, err = t.journal.Merge(ctx, file, t.last, through)
	}
	if err == nil {
		_, err = file.WriteAt(catalog.EncodeTail(ref), 0)
	}
	if err != nil {
		file.close()
		return err
	}
	t.next = &tail{ref, file}
	return nil
}

// putNext puts the tail that is next. One whose fate is unknown is put again as it is,
// by the next flush: others can't come before it is settled.
func (t *Tails) putNext(ctx context.Context) error {
	store, err := t.Bucket()
	if err != nil {
		return err
	}
	ref := t.next.ref
	err = putOnce(ctx, store, ref.TailKey(), t.next.file.body(0, catalog.TailHeader+ref.Bytes))
	if errors.Is(err, content.ErrExists) {
		return t.forestalled(ctx, store, ref)
	}
	if err != nil {
		return err
	}
	t.next.file.close()
	t.release()
	t.held = t.journal.Keep(ref.Through) == nil
	t.last, t.next, t.put = ref.Through, nil, append(t.put, ref)
	return nil
}

// forestalled says what is where the next tail was to be, which is not there and never will.
// Called with mu.
func (t *Tails) forestalled(ctx context.Context, store bucket.Bucket, ref content.SegmentRef) error {
	there, _, err := readTail(ctx, store, ref.TailKey())
	switch {
	case err != nil:
		return err
	case !catalog.EndsEpoch(there): // by one that has this volume's epoch too: a copy of this disk
		return fmt.Errorf("%w: another node has written under epoch %d behind %v", content.ErrFenced, ref.Epoch, ref.After)
	}
	t.begin(t.last)
	return endedEpoch{ref.Epoch, ref.After}
}

// run is the tails between two places as one segment of a record; the zero one where they are not
// this process's, and a chain from just there to just there, of one epoch: by that they are found.
func (t *Tails) run(after, through content.Position) (run content.SegmentRef) {
	if t == nil {
		return run
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var chain []content.SegmentRef
	at := after
	for _, ref := range t.put {
		if ref.After == at && at.Seq < through.Seq && (len(chain) == 0 || ref.Epoch == chain[0].Epoch) {
			chain, at = append(chain, ref), ref.Through
		}
	}
	if at != through || len(chain) == 0 {
		return run
	}
	return catalog.JoinTails(chain)
}

// tailsOf returns the tails that a segment of a record lies in. Some that are gone are
// content.ErrNotFound.
func tailsOf(ctx context.Context, in bucket.Bucket, run content.SegmentRef) ([]journal.AdoptedSegment, error) {
	keys, err := catalog.TailKeys(ctx, in, run)
	var tails []journal.AdoptedSegment
	if err == nil {
		tails, err = readTails(ctx, in, run.Volume, keys)
	}
	tails = slices.DeleteFunc(tails, func(s journal.AdoptedSegment) bool { return catalog.EndsEpoch(s.Ref) }) // by who was slower than the writer
	if err == nil && len(tails) < run.Tails {
		err = content.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("tails of volume %s behind entry %d: %w", run.Volume, run.After.Seq, err)
	}
	chain := make([]content.SegmentRef, len(tails))
	for i := range tails {
		chain[i] = tails[i].Ref
	}
	if catalog.JoinTails(chain) != run {
		return nil, fmt.Errorf("tails of volume %s behind entry %d: %w: they are others than its record names", run.Volume, run.After.Seq, content.ErrCorrupt)
	}
	return tails, nil
}

// cut deletes tails that the record covers, but for those that it names, or that a snapshot
// or a fork may name. Their keys can't serve again: this epoch's tails come after a later
// one, and older epochs were ended behind them.
func (t *Tails) cut(ctx context.Context, store bucket.Bucket, now catalog.Volume) {
	t.mu.Lock()
	put := t.put
	n := 0
	for n < len(put) && put[n].Through.Seq <= now.Through().Seq {
		n++
	}
	t.put = put[n:]
	t.mu.Unlock()
	for _, ref := range put[:n] {
		named := slices.ContainsFunc(now.Segments, func(s content.SegmentRef) bool {
			return s.Tails > 0 && s.After.Seq <= ref.After.Seq && ref.Through.Seq <= s.Through.Seq
		})
		if named || ref.After.Seq < now.Shared {
			continue
		}
		if err := store.Delete(ctx, ref.TailKey()); err != nil {
			return // it is garbage
		}
	}
}

// EndEpoch makes sure that nobody can acknowledge a flush of a volume under the epoch of its
// record any more, before the next one is taken: flushes may have gone to the origin under an
// earlier policy. It returns the tails behind what the record has, which are a chain; this
// process's go on behind them. They are opened with ctx. Where the record, which was just read,
// changes meanwhile, tails may be gone: content.ErrNotFound, and the caller begins anew.
func (t *Tails) EndEpoch(ctx context.Context, body catalog.Volume) (chain []journal.AdoptedSegment, err error) {
	store, err := t.Bucket()
	switch {
	case err != nil && body.Policy != catalog.PolicyOrigin:
		return nil, nil
	case err != nil:
		return nil, err
	}
	at := body.Through()
	for ahead := 0; ; ahead = min(max(1, 2*ahead), aheadMax) {
		keys, err := catalog.TailKeys(ctx, store, content.SegmentRef{Volume: body.ID, After: at, Through: content.Position{Number: math.MaxUint64}})
		var tails []journal.AdoptedSegment
		if err == nil {
			tails, err = readTails(ctx, store, body.ID, keys)
		}
		if err != nil {
			return nil, fmt.Errorf("tails of volume %s: %w", body.ID, err)
		}
		for next, ok := follows(tails, at); ok; next, ok = follows(tails, at) {
			chain, at = append(chain, next), next.Ref.Through
		}
		ended, err := endAt(ctx, store, content.SegmentRef{Volume: body.ID, Epoch: body.Epoch, After: at}, ahead)
		if err != nil {
			return nil, err
		}
		if ended { // else the writer was quicker once more
			t.Begin(at)
			return chain, nil
		}
	}
}

// endAt ends an epoch where the next tail would come, and so many places after that, in case
// that the writer is there before: it comes to one of them then. It reports whether the epoch
// ends just there.
func endAt(ctx context.Context, store bucket.Bucket, at content.SegmentRef, ahead int) (ended bool, err error) {
	group, putting := errgroup.WithContext(ctx)
	group.SetLimit(tailReads)
	for i := range ahead + 1 {
		end := at
		end.After.Number += uint64(i)
		end.Through = end.After
		group.Go(func() error {
			err := putOnce(putting, store, end.TailKey(), bucket.Bytes(catalog.EncodeTail(end)))
			there := end
			switch is := errors.Is(err, content.ErrExists); {
			case is && i > 0: // the next look reads what that is
				return nil
			case is:
				there, _, err = readTail(putting, store, end.TailKey())
			}
			if i == 0 {
				ended = catalog.EndsEpoch(there)
			}
			return err
		})
	}
	err = group.Wait()
	return ended, err
}

// follows finds the tail with a segment that comes after a place. There is one at most,
// but where a later epoch went on from holders, who had more than the tails: its own counts.
func follows(tails []journal.AdoptedSegment, at content.Position) (next journal.AdoptedSegment, ok bool) {
	for _, s := range tails {
		if s.Ref.After == at && !catalog.EndsEpoch(s.Ref) && (!ok || s.Ref.Epoch > next.Ref.Epoch) {
			next, ok = s, true
		}
	}
	return next, ok
}

// readTails reads tails of a volume, of large ones the headers.
func readTails(ctx context.Context, store bucket.Bucket, id content.VolumeID, keys []string) ([]journal.AdoptedSegment, error) {
	tails := make([]journal.AdoptedSegment, len(keys))
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(tailReads)
	for i, key := range keys {
		group.Go(func() error {
			ref, all, err := readTail(reading, store, key)
			if err == nil && (ref.TailKey() != key || ref.Volume != id) {
				err = fmt.Errorf("%s: %w: it is of another place", key, content.ErrCorrupt)
			}
			tails[i] = journal.AdoptedSegment{Ref: ref, Open: func() (io.ReadCloser, error) {
				if all != nil {
					return io.NopCloser(bytes.NewReader(all)), nil
				}
				return open(ctx, store, key, catalog.TailHeader, ref.Bytes)
			}}
			return err
		})
	}
	return tails, group.Wait()
}

// readTail reads the header of a tail, and all of its segment where that is small.
func readTail(ctx context.Context, store bucket.Bucket, key string) (ref content.SegmentRef, all []byte, err error) {
	o, err := store.Get(ctx, key, bucket.Range{Length: tailSmall})
	if err != nil {
		return ref, nil, err
	}
	defer o.Body.Close()
	b := make([]byte, min(o.Size, tailSmall))
	if _, err := io.ReadFull(o.Body, b); err != nil {
		return ref, nil, fmt.Errorf("read %s: %w: %w", key, content.ErrUnavailable, err)
	}
	if ref, err = catalog.DecodeTail(b[:min(len(b), catalog.TailHeader)]); err == nil && !catalog.EndsEpoch(ref) && ref.Bytes == int64(len(b))-catalog.TailHeader {
		all = b[catalog.TailHeader:]
	}
	return ref, all, err
}
