package fold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// putTries is how often an object is sent whose fate is unknown; who wants it folds again later.
	putTries = 3
	// comparePiece is how much of two objects is compared at a time.
	comparePiece = 64 << 10
)

// putOnce stores an object under a key that nobody else uses. A lost reply, and a key that
// is taken, are settled by reading: the same bytes there are an earlier try, and success;
// others are content.ErrExists.
func putOnce(ctx context.Context, to bucket.Bucket, key string, body bucket.Body) (err error) {
	for range putTries {
		_, err = to.Put(ctx, key, body, bucket.IfAbsent())
		if !errors.Is(err, bucket.ErrUnknown) && !errors.Is(err, bucket.ErrPrecondition) {
			return err
		}
		same, readErr := holds(ctx, to, key, body)
		switch {
		case readErr == nil && same:
			return nil
		case readErr == nil:
			return fmt.Errorf("%s: %w: with other bytes", key, content.ErrExists)
		case !errors.Is(readErr, content.ErrNotFound):
			return errors.Join(err, readErr)
		}
	}
	return err
}

// holds reports whether an object has just those bytes.
func holds(ctx context.Context, in bucket.Bucket, key string, body bucket.Body) (bool, error) {
	o, err := in.Get(ctx, key, bucket.Range{})
	if err != nil {
		return false, err
	}
	defer o.Body.Close()
	if o.Size != body.Size() {
		return false, nil
	}
	there, here := make([]byte, comparePiece), make([]byte, comparePiece)
	for off := int64(0); off < body.Size(); {
		n := min(comparePiece, body.Size()-off)
		if _, err := io.ReadFull(o.Body, there[:n]); err != nil {
			return false, fmt.Errorf("read %s: %w: %w", key, content.ErrUnavailable, err)
		}
		if _, err := body.ReadAt(here[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if !bytes.Equal(there[:n], here[:n]) {
			return false, nil
		}
		off += n
	}
	return true, nil
}

// InBucket returns the segments that a record names, at the origin: each tail is one. They are
// opened with ctx, for who checks their sums; one that is gone is content.ErrNotFound then:
// read the record again.
func InBucket(ctx context.Context, store func() (bucket.Bucket, error), refs []content.SegmentRef) (out []journal.AdoptedSegment) {
	for _, ref := range refs {
		in, err := store()
		var tails []journal.AdoptedSegment
		if err == nil && ref.Tails > 0 {
			tails, err = tailsOf(ctx, in, ref)
		}
		switch {
		case err != nil: // who opens it is told
			tails = []journal.AdoptedSegment{{Ref: ref, Open: func() (io.ReadCloser, error) { return nil, err }}}
		case ref.Tails == 0:
			tails = []journal.AdoptedSegment{{Ref: ref, Open: func() (io.ReadCloser, error) { return open(ctx, in, ref.Key(), 0, ref.Bytes) }}}
		}
		out = append(out, tails...)
	}
	return out
}

// open opens a part of an object.
func open(ctx context.Context, in bucket.Bucket, key string, off, length int64) (io.ReadCloser, error) {
	o, err := in.Get(ctx, key, bucket.Range{Offset: off, Length: length})
	if err != nil {
		return nil, err
	}
	return bucket.Exactly(o.Body, length), nil
}
