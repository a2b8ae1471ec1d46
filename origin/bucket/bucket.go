// Package bucket is the object store as grange uses it: four calls, with ranges
// and conditions. Implementations are mem, dir, s3 and web; decorators in this
// package add retries, limits, metrics and a breaker to any of them.
package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

var (
	// ErrPrecondition: the object was not in the state that the condition asks
	// for, and nothing was written.
	ErrPrecondition = fmt.Errorf("precondition failed: %w", content.ErrConflict)
	// ErrUnknown: the write was sent and its outcome is not known; only reading
	// the object tells.
	ErrUnknown = fmt.Errorf("outcome unknown: %w", content.ErrUnavailable)
)

// Bucket is an object store. Safe for concurrent use. A store that takes no
// writes answers Put and Delete with content.ErrReadOnly.
type Bucket interface {
	// Get opens an object, or a range of it; the caller closes Body. An absent
	// object is content.ErrNotFound, a range wholly outside content.ErrInvalid.
	Get(ctx context.Context, key string, r Range) (*Object, error)
	// Put stores an object whole, durably, before it returns. A condition that
	// does not hold is ErrPrecondition; a lost reply is ErrUnknown. Without a
	// condition a lost reply is retried, as writing twice is writing once.
	Put(ctx context.Context, key string, body Body, cond Condition) (Info, error)
	// List yields the objects whose keys begin with prefix and are greater than
	// after, in rising order of keys, fetching pages as they are consumed. It
	// ends after the first error.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
	// Delete removes an object; an absent one is success.
	Delete(ctx context.Context, key string) error
}

// Range is a part of an object. The zero Range is all of it.
type Range struct {
	// Offset of the first byte; negative counts from the end.
	Offset int64
	// Length in bytes; 0 is to the end. A range that reaches beyond the end is
	// cut there.
	Length int64
}

// Info describes an object.
type Info struct {
	Key  string
	Size int64
	// ETag changes with the object; compared as it is.
	ETag string
	// Modified is when the object was written, by the store's clock.
	Modified time.Time
	// Now is the store's clock when it answered; zero when it did not say.
	Now time.Time
}

// Object is an open object or range.
type Object struct {
	Info
	Body io.ReadCloser
}

// Body is what a Put stores: bytes that can be read again for another try.
type Body interface {
	io.ReaderAt
	Size() int64
}

// Bytes is a Body over b, which must not change before the Put returns.
func Bytes(b []byte) Body { return bytes.NewReader(b) }

// Condition guards a Put. The zero Condition always holds.
type Condition struct {
	absent bool
	etag   string
}

// IfAbsent holds when no object has the key.
func IfAbsent() Condition { return Condition{absent: true} }

// IfMatch holds when the object has that ETag; it fails on an absent one.
func IfMatch(etag string) Condition { return Condition{etag: etag} }

// IsZero reports whether the Put is unconditional.
func (c Condition) IsZero() bool { return c == Condition{} }

// Absent reports whether the condition is IfAbsent.
func (c Condition) Absent() bool { return c.absent }

// ETag returns the tag of IfMatch, or "".
func (c Condition) ETag() string { return c.etag }

// ReadAll reads a whole object of at most limit bytes; a larger one is
// content.ErrCorrupt, as no writer of ours makes it.
func ReadAll(ctx context.Context, b Bucket, key string, limit int64) ([]byte, Info, error) {
	o, err := b.Get(ctx, key, Range{})
	if err != nil {
		return nil, Info{}, err
	}
	defer o.Body.Close()
	data, err := io.ReadAll(io.LimitReader(o.Body, limit+1))
	switch {
	case err != nil:
		return nil, Info{}, fmt.Errorf("read %s: %w", key, errors.Join(content.ErrUnavailable, err))
	case int64(len(data)) > limit:
		return nil, Info{}, fmt.Errorf("read %s: %w: more than %d bytes", key, content.ErrCorrupt, limit)
	}
	return data, o.Info, nil
}

// Within resolves r against an object of the given size: where it begins and how
// long it is. A range wholly outside is content.ErrInvalid.
func (r Range) Within(size int64) (off, length int64, err error) {
	off, length = r.Offset, r.Length
	if off < 0 {
		off = max(size+off, 0)
	}
	if length < 0 || off > size || off == size && r != (Range{}) {
		return 0, 0, fmt.Errorf("range %d+%d of %d bytes: %w", r.Offset, r.Length, size, content.ErrInvalid)
	}
	if length == 0 || length > size-off {
		length = size - off
	}
	return off, length, nil
}
