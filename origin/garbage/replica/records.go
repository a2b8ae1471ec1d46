package replica

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
)

// recordsAtOnce bounds the records that are copied at once.
const recordsAtOnce = 8

// records copies all records, once all else is there.
func (c *copier) records(ctx context.Context) error {
	group, copying := errgroup.WithContext(ctx)
	group.SetLimit(recordsAtOnce)
	var err error
	for rec, bad := range c.from.RecordsAfter(copying, "") {
		if err = bad; err != nil {
			break
		}
		if rec.Space != content.KindLease && rec.Space != content.KindCollection {
			group.Go(func() error { return c.latest(copying, rec) })
		}
	}
	if waited := group.Wait(); waited != nil {
		err = waited // the cause, where err is that the list was told to end
	}
	return err
}

// latest copies a record as it was listed, and where that can't be, as it is by then.
func (c *copier) latest(ctx context.Context, rec garbage.Record) error {
	var bad error
	gone, err := c.from.Settle(ctx, rec, func(now garbage.Record) (well bool, err error) {
		bad, err = c.record(ctx, now)
		return bad == nil, err
	})
	if err == nil && bad != nil && !gone {
		c.fail(Failure{rec.Label(), rec.Key, content.Line(bad)})
	}
	c.tell(func(r *Report) { r.Records++ })
	return err
}

// record copies one, unless something of it is bad.
func (c *copier) record(ctx context.Context, rec garbage.Record) (bad, err error) {
	if bad := errors.Join(rec.Unsigned, rec.Err); bad != nil {
		return bad, nil
	}
	for range putTries {
		cond, wanted, bad, err := c.compare(ctx, rec)
		if bad != nil || err != nil || !wanted {
			return bad, err
		}
		keys, bad, err := c.complete(ctx, rec)
		if bad != nil || err != nil {
			return bad, err
		}
		_, err = c.to.Put(ctx, rec.Key, bucket.Bytes(rec.Sealed), cond)
		switch {
		case err == nil:
			c.tell(func(r *Report) { r.RecordsSent++ })
			return c.secure(ctx, rec, keys)
		case !errors.Is(err, bucket.ErrPrecondition) && !errors.Is(err, bucket.ErrUnknown):
			return nil, fmt.Errorf("write %s: %w", rec.Key, err)
		}
	}
	return nil, fmt.Errorf("write %s: %w: it changes at the copy, or its replies are lost, again and again", rec.Key, content.ErrUnavailable)
}

// compare says whether the copy wants a record, and the condition to put it under.
func (c *copier) compare(ctx context.Context, rec garbage.Record) (cond bucket.Condition, wanted bool, bad, err error) {
	there, info, err := bucket.ReadAll(ctx, c.to, rec.Key, content.RecordSizeMax)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return bucket.IfAbsent(), true, nil, nil
	case errors.Is(err, content.ErrCorrupt): // longer than any record: it is none
		there, err = nil, nil
		var o *bucket.Object
		if o, err = c.to.Get(ctx, rec.Key, bucket.Range{Length: 1}); err == nil {
			info, err = o.Info, o.Body.Close()
		}
	}
	if err != nil {
		return cond, false, nil, err
	}
	old, unsigned := c.from.Verifier.Open(there, info.Modified, c.from.Now())
	switch {
	case bytes.Equal(there, rec.Sealed):
		return cond, false, nil, nil
	case unsigned != nil || old.Name != rec.Name || old.Version < rec.Envelope.Version: // what nobody believes gives way
		return bucket.IfMatch(info.ETag), true, nil, nil
	case old.Version > rec.Envelope.Version:
		c.tell(func(r *Report) {
			if len(r.Newer) < FailuresMax {
				r.Newer = append(r.Newer, rec.Label())
			}
		})
		return cond, false, nil, nil
	}
	return cond, false, fmt.Errorf("%w: another record of version %d is at the copy", content.ErrConflict, old.Version), nil
}

// complete sees to it that all that a record names is at the copy, and returns its keys. What can't be is bad.
func (c *copier) complete(ctx context.Context, rec garbage.Record) (keys []string, bad, err error) {
	if rec.Head != nil {
		m, err := c.reader.ReadManifest(ctx, *rec.Head)
		if err == nil {
			err = m.CheckOf(content.NewCodec(), *rec.Head)
		}
		if bad, err = parted(err); bad != nil || err != nil {
			return nil, bad, err
		}
		for _, p := range append(m.Packs, pack.PackRefs{ID: rec.Head.Manifest.Pack}) {
			keys = append(keys, p.ID.Key())
			if bad, err := c.bring(ctx, p.ID.Key(), 0); bad != nil || err != nil {
				return nil, bad, err
			}
		}
	}
	for _, ref := range rec.Segments {
		of, bad, err := c.segment(ctx, ref)
		if bad != nil || err != nil {
			return nil, bad, err
		}
		keys = append(keys, of...)
	}
	return keys, nil, nil
}

// parted tells what is bad at the origin from why that is not known.
func parted(of error) (bad, err error) {
	if content.IsDamage(of) {
		return of, nil
	}
	return nil, of
}

// segment sees to it that a segment that a record names is at the copy, and whole. It is read there, unless it was just
// sent: of two keys that are the same the bytes need not be.
func (c *copier) segment(ctx context.Context, ref content.SegmentRef) (keys []string, bad, err error) {
	if keys, err = []string{ref.Key()}, nil; ref.Tails > 0 {
		keys, err = catalog.TailKeys(ctx, c.from.Bucket, ref)
	} else if sum, ok := c.sum(ref.Key()); ok && sum == ref.Sum {
		return keys, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if bad, err = parted(catalog.CheckSegment(ctx, c.to, ref)); bad == nil || err != nil {
		return keys, nil, err
	}
	for _, key := range keys {
		now, _, err := stat(ctx, c.to, key)
		if err == nil {
			bad, err = c.send(ctx, key, now.ETag)
		}
		if bad != nil || err != nil {
			return nil, bad, err
		}
	}
	bad, err = parted(catalog.CheckSegment(ctx, c.to, ref))
	return keys, bad, err
}

// secure does for a record at the copy what who commits one does, where garbage is collected there too.
func (c *copier) secure(ctx context.Context, rec garbage.Record, keys []string) (bad, err error) {
	var kept func([]string) map[string]bool
	if rec.Head != nil {
		kept = garbage.Follows(ctx, c.to, *rec.Head)
	}
	for _, err := range c.to.List(ctx, string(content.KeyGarbage), "") {
		if err != nil {
			return nil, fmt.Errorf("look whether garbage is collected at the copy: %w", err)
		}
		lost, err := garbage.Secure(ctx, c.to, keys, kept)
		if err == nil && len(lost) > 0 {
			bad = fmt.Errorf("%w: %d objects are being deleted at the copy, as garbage is collected there; the first is %s", content.ErrConflict, len(lost), lost[0])
		}
		return bad, err
	}
	return nil, nil
}

// sorted is a report whose lists are in order.
func (r Report) sorted() Report {
	slices.SortFunc(r.Failures, func(a, b Failure) int { return cmp.Compare(a.Key, b.Key) })
	slices.Sort(r.Newer)
	return r
}
