// Package bucket is the object store as grange uses it: four calls, with ranges
// and conditions. Implementations are mem, dir, s3 and web; decorators in this
// package add retries, limits, metrics and a breaker to any of them.
package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

var (
	// ErrPrecondition: the object was not in the state that the condition asks for, and nothing was written.
	ErrPrecondition = fmt.Errorf("precondition failed: %w", content.ErrConflict)
	// ErrUnknown: the write was sent and its outcome is not known; only reading the object tells.
	ErrUnknown = fmt.Errorf("outcome unknown: %w", content.ErrUnavailable)
	// ErrBusy: the store did nothing and asks to be asked again, so that even a
	// conditional write may be repeated.
	ErrBusy = fmt.Errorf("the store is busy: %w", content.ErrUnavailable)
	// ErrSlowDown: it did nothing and asks for fewer requests. It is not away.
	ErrSlowDown = fmt.Errorf("the store asks for fewer requests: %w", ErrBusy)
	// ErrReplaced: the rest of what was begun to be read is gone, as another object has the key.
	ErrReplaced = fmt.Errorf("it was replaced meanwhile: %w", content.ErrUnavailable)
	// ErrOpen: the store was not asked, as it has just failed again and again.
	ErrOpen = fmt.Errorf("not asked again so soon: %w", content.ErrUnavailable)
)

const (
	// KeyMax bounds a key, in bytes: half of what S3 takes, for a prefix before it.
	KeyMax = 512
	// keyPartMax bounds what stands between two slashes: a file name.
	keyPartMax = 255
	// PageSize is how many objects S3 lists in one request.
	PageSize = 1000
)

// CheckKey fails with content.ErrInvalid unless every implementation can keep an object under key: parts of
// [A-Za-z0-9._@-] joined by slashes, none of which begins with a dot.
func CheckKey(key string) error {
	if key == "" || len(key) > KeyMax {
		return fmt.Errorf("key %.100q: %w: want 1 to %d bytes, got %d", key, content.ErrInvalid, KeyMax, len(key))
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || len(part) > keyPartMax {
			return fmt.Errorf("key %.100q: %w: part %.50q is empty, hidden or too long", key, content.ErrInvalid, part)
		}
		for i := range len(part) {
			c := part[i]
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' || c == '@' || c == '%') {
				return fmt.Errorf("key %.100q: %w: want letters, digits and . _ - @ %% /", key, content.ErrInvalid)
			}
		}
	}
	return nil
}

// Bucket is an object store. Safe for concurrent use. Keys are as CheckKey wants them. A store that takes no
// writes answers Put and Delete with content.ErrReadOnly, one that has no lists errors.ErrUnsupported; one
// that does not answer is content.ErrUnavailable, one that answers no content.ErrForbidden.
type Bucket interface {
	// Get opens an object, or a range of it; the caller closes Body. An absent
	// object is content.ErrNotFound, a range wholly outside content.ErrInvalid.
	Get(ctx context.Context, key string, r Range) (*Object, error)
	// Put stores an object whole, durably, before it returns; readers see the old
	// object or the new one. A condition that does not hold is ErrPrecondition, a
	// lost reply ErrUnknown, a store that did nothing yet ErrBusy.
	Put(ctx context.Context, key string, body Body, cond Condition) (Info, error)
	// List yields the objects whose keys begin with prefix and are greater than after, in rising order of
	// keys, fetching pages as they are consumed. It ends after the first error.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
	// Delete removes an object; an absent one is success.
	Delete(ctx context.Context, key string) error
}

// Range is a part of an object. The zero Range is all of it.
type Range struct {
	// Offset of the first byte; negative counts from the end.
	Offset int64
	// Length in bytes; 0 is to the end. A range that reaches beyond the end is cut there.
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
		return nil, Info{}, fmt.Errorf("read %s: %w: %w", key, content.ErrUnavailable, err)
	case int64(len(data)) > limit:
		return nil, Info{}, fmt.Errorf("read %s: %w: more than %d bytes", key, content.ErrCorrupt, limit)
	}
	return data, o.Info, nil
}

// ReadChecked reads a whole object of at most limit bytes and has it checked. What does
// not check is read once more: a bit may have flipped on the way.
func ReadChecked[T any](ctx context.Context, b Bucket, key string, limit int64, check func([]byte, Info) (T, error)) (out T, err error) {
	for range 2 {
		var data []byte
		var info Info
		if data, info, err = ReadAll(ctx, b, key, limit); err == nil {
			if out, err = check(data, info); err == nil {
				return out, nil
			}
		} else if !errors.Is(err, content.ErrCorrupt) {
			return out, err
		}
	}
	return out, err
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

// Exactly returns the first n bytes of the body of a reply. A body that breaks or ends before is
// content.ErrUnavailable: a cut connection is never taken for a short object.
func Exactly(body io.ReadCloser, n int64) io.ReadCloser { return &exactly{body, n} }

type exactly struct {
	io.ReadCloser
	left int64
}

func (b *exactly) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left == 0 || err == nil:
		return n, nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("reply cut %d bytes before its end: %w: %w", b.left, content.ErrUnavailable, err)
}

// Probe finds out whether writing to a bucket is safe: whether it takes writes and honours both conditions. A
// store that ignores them would let two writers believe that each had won; it is content.ErrReadOnly, as is
// one that refuses writes. It costs five requests.
func Probe(ctx context.Context, b Bucket) error {
	key := string(content.KeyProbes) + rand.Text()
	first, err := b.Put(ctx, key, Bytes([]byte("first")), IfAbsent())
	if errors.Is(err, content.ErrForbidden) {
		return fmt.Errorf("%w: probe for writing: %w", content.ErrReadOnly, err)
	}
	if err != nil {
		return fmt.Errorf("probe for writing: %w", err)
	}
	err = errors.Join(
		ignored(ctx, b, key, IfAbsent(), "if-none-match"),
		ignored(ctx, b, key, IfMatch(`"00000000000000000000000000000000"`), "if-match"),
	)
	if err == nil {
		if _, err = b.Put(ctx, key, Bytes([]byte("second")), IfMatch(first.ETag)); err != nil {
			err = fmt.Errorf("probe for conditional writing: %w", err)
		}
	}
	return errors.Join(err, b.Delete(context.WithoutCancel(ctx), key))
}

// ignored fails when a write goes through although its condition does not hold.
func ignored(ctx context.Context, b Bucket, key string, cond Condition, name string) error {
	_, err := b.Put(ctx, key, Bytes([]byte("wrong")), cond)
	switch {
	case err == nil:
		return fmt.Errorf("%w: the store ignores %s, so two writers could both believe that they had won; use one that honours conditional writes", content.ErrReadOnly, name)
	case errors.Is(err, ErrPrecondition):
		return nil
	}
	return fmt.Errorf("probe for conditional writing: %w", err)
}
