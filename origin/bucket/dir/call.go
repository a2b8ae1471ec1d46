package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// callsMax bounds the calls into the file system at once. Each that never returns
	// keeps a thread of the process; beyond this many, nobody asks such a folder.
	callsMax = 128
	// readMax is how much one call reads, in bytes. It passes through memory that the
	// call can keep when its caller has gone.
	readMax = 256 << 10
	// statsMax is how many files of a list one call looks at.
	statsMax = 256
)

// errAbandoned: the caller's time ended before the file system answered. What was asked may still happen.
var errAbandoned = errors.New("the folder does not answer")

// call runs f, which may never return, as calls to a network mount that fell silent
// do; its caller goes on when ctx ends. What f brings afterwards is given to drop.
func call[T any](ctx context.Context, b *Bucket, f func() (T, error), drop func(T)) (T, error) {
	var none T
	select {
	case b.calls <- struct{}{}:
	case <-ctx.Done():
		return none, abandoned(ctx)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		defer func() { <-b.calls }()
		value, err := f()
		select {
		case done <- result{value, err}:
		case <-ctx.Done():
			if err == nil && drop != nil {
				drop(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, abandoned(ctx)
	}
}

// do is call for what brings nothing but an error.
func do(ctx context.Context, b *Bucket, f func() error) error {
	_, err := call(ctx, b, func() (struct{}, error) { return struct{}{}, f() }, nil)
	return err
}

func abandoned(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errAbandoned, err)
	}
	return fmt.Errorf("%w: %w: %w", content.ErrUnavailable, errAbandoned, ctx.Err())
}

// openObject opens an object for reading, and nothing else that may stand in its place:
// a FIFO, device or socket is not waited for, a symbolic link not followed.
func (b *Bucket) openObject(key string) (opened, error) {
	name := b.path(key)
	f, err := openNoWait(name)
	if isForeign(err) {
		return opened{}, fmt.Errorf("%w: %s is no regular file: remove it, or what put it there", content.ErrCorrupt, name)
	}
	if err != nil {
		return opened{}, b.unread(err)
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
		err = b.unread(err)
	case fi.IsDir():
		err = content.ErrNotFound
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("%w: %s is no regular file: remove it, or what put it there", content.ErrCorrupt, name)
	}
	if err != nil {
		f.Close() // nothing was written
		return opened{}, err
	}
	return opened{f, fi, isLocal(f)}, nil
}

// opened is an object that is open for reading.
type opened struct {
	*os.File
	info  os.FileInfo
	local bool // reads end, whatever becomes of a network
}

type part struct {
	ctx      context.Context // of the Get that opened the body, which bounds its reads too
	b        *Bucket
	f        *os.File // nil once a call that never ended has it
	local    bool
	off, end int64
}

func (p *part) Read(to []byte) (int, error) {
	left := min(int64(len(to)), p.end-p.off)
	switch {
	case p.f == nil:
		return 0, abandoned(p.ctx)
	case left == 0:
		return 0, io.EOF
	case p.ctx.Err() != nil:
		return 0, p.ctx.Err()
	case !p.local:
		return p.readCopied(to[:min(left, readMax)])
	}
	n, err := p.f.ReadAt(to[:left], p.off)
	p.off += int64(n)
	return n, err
}

// readCopied reads by way of memory that a call which never ends may keep.
func (p *part) readCopied(to []byte) (int, error) {
	buf, f, off := p.b.buffers.Get(len(to)), p.f, p.off
	type read struct {
		n   int
		err error // beside bytes, perhaps
	}
	r, err := call(p.ctx, p.b, func() (read, error) {
		n, err := f.ReadAt(*buf, off)
		return read{n, err}, nil
	}, func(read) { f.Close() })
	if err != nil {
		p.f = nil // and buf is the call's
		return 0, err
	}
	copy(to, (*buf)[:r.n])
	p.b.buffers.Put(buf)
	p.off += int64(r.n)
	return r.n, r.err
}

func (p *part) Close() error {
	if p.f == nil {
		return nil
	}
	return p.f.Close()
}

// lent is the body of a Put, which its caller takes back when the Put returns,
// whether or not a call still copies it.
type lent struct {
	bucket.Body
	turn chan struct{} // holds one element while somebody reads, and for good once it is taken back
}

func newLent(body bucket.Body) lent { return lent{body, make(chan struct{}, 1)} }

func (l lent) ReadAt(p []byte, off int64) (int, error) {
	select {
	case l.turn <- struct{}{}:
	default:
		return 0, errAbandoned
	}
	defer func() { <-l.turn }()
	return l.Body.ReadAt(p, off)
}

// takeBack returns once nobody reads, nor will.
func (l lent) takeBack() { l.turn <- struct{}{} }
