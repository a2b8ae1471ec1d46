package bucket

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

// ErrDoubt: the store's answers contradict each other, or leave out what tells old from new: whoever deletes by them may
// delete what lives.
var ErrDoubt = fmt.Errorf("the store's answers can't be trusted with deletions: %w", content.ErrUnavailable)

const (
	// writtenMax is how far what a store says of the time of a write may be from its clock right behind it.
	writtenMax = 2 * time.Minute
	// backMax is how far its clock may go back: that of another front end of the same store.
	backMax = 5 * time.Second
)

// ProbeOrder finds out whether the store shows what was written last, everywhere and at once, and tells when: what is put
// and put again is read and listed as it is now, with a time of now, and what is deleted is gone. Anything else is
// ErrDoubt, with what was seen. It costs eight requests.
func ProbeOrder(ctx context.Context, b Bucket) error {
	p := order{b: b, key: string(content.KeyProbes) + rand.Text()}
	err := p.run(ctx)
	if err != nil && p.written {
		err = errors.Join(err, b.Delete(context.WithoutCancel(ctx), p.key))
	}
	if err != nil {
		return fmt.Errorf("probe whether the store shows what was written last: %w", err)
	}
	return nil
}

type order struct {
	b       Bucket
	key     string
	written bool

	now      time.Time // the latest by the store's clock
	modified time.Time // of the object, the latest that was seen
	etag     string
	size     int64
}

func doubt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDoubt, fmt.Sprintf(format, args...))
}

func (p *order) run(ctx context.Context) error {
	for _, step := range []struct {
		text string
		cond func() Condition
	}{{"first", IfAbsent}, {"the second", func() Condition { return IfMatch(p.etag) }}} {
		if err := p.write(ctx, []byte(step.text), step.cond()); err != nil {
			return err
		}
	}
	if err := p.listed(ctx, 1); err != nil {
		return err
	}
	if err := p.b.Delete(ctx, p.key); err != nil {
		return err
	}
	p.written = false
	if err := p.listed(ctx, 0); err != nil {
		return err
	}
	_, _, err := ReadAll(ctx, p.b, p.key, p.size)
	switch {
	case err == nil:
		return doubt("an object just deleted can be read")
	case errors.Is(err, content.ErrNotFound):
		return nil
	}
	return err
}

// write puts an object, and reads it.
func (p *order) write(ctx context.Context, b []byte, cond Condition) error {
	p.written = true
	info, err := p.b.Put(ctx, p.key, Bytes(b), cond)
	if err != nil {
		return err
	}
	if info.ETag == "" || info.ETag == p.etag {
		return doubt("an object just overwritten has the ETag %q still", info.ETag)
	}
	p.etag, p.size = info.ETag, int64(len(b))
	if err := p.clock("a put", info); err != nil {
		return err
	}
	got, info, err := ReadAll(ctx, p.b, p.key, PageSize)
	if err != nil {
		return err
	}
	if string(got) != string(b) {
		return doubt("an object just written is read as %.20q, and is %q", got, b)
	}
	return p.seen("a get", info)
}

// listed lists the object, n times.
func (p *order) listed(ctx context.Context, n int) error {
	for info, err := range p.b.List(ctx, p.key, "") {
		if err != nil {
			return err
		}
		if n--; n < 0 {
			return doubt("an object just deleted is listed")
		}
		if err := p.seen("a list", info); err != nil {
			return err
		}
	}
	if n > 0 {
		return doubt("an object just written is not listed")
	}
	return nil
}

// seen fails where an answer is not of what was written last.
func (p *order) seen(what string, info Info) error {
	if err := p.clock("the answer to "+what, info); err != nil {
		return err
	}
	age := info.Now.Sub(info.Modified)
	switch {
	case info.ETag != p.etag || info.Size != p.size:
		return doubt("%s of an object just written says ETag %s and %d bytes, and it has %s and %d", what, info.ETag, info.Size, p.etag, p.size)
	case info.Modified.IsZero():
		return doubt("%s does not say when an object was written", what)
	case age.Abs() > writtenMax:
		return doubt("%s has a Last-Modified of an object just written that is %s old", what, age.Round(time.Second))
	case info.Modified.Before(p.modified.Add(-backMax)):
		return doubt("%s has a Last-Modified of an object just overwritten, %s, that is before the one that it had, %s", what, info.Modified, p.modified)
	}
	p.modified = info.Modified
	return nil
}

// clock fails where the store's clock stands still unsaid, or goes back.
func (p *order) clock(what string, info Info) error {
	switch {
	case info.Now.IsZero():
		return doubt("%s has no Date", what)
	case info.Now.Before(p.now.Add(-backMax)):
		return doubt("the Date of %s, %s, is before the last, %s", what, info.Now, p.now)
	}
	p.now = info.Now
	return nil
}
