package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// quietMax is how long a reader waits for bytes before they are asked for beside:
	// longer than most stores take over their slowest answers.
	quietMax = 2 * time.Second
	// rivalMax is how long a request beside may take to bring its first byte. A store
	// that is back answers a new one, and those that it has forgotten never.
	rivalMax = 1500 * time.Millisecond
	// rivalPause lies between two of them that failed at once.
	rivalPause = 500 * time.Millisecond
	// progressMin is what a body has to bring within quietMax: less is a trickle, and a
	// slower line would take a minute for a run.
	progressMin = 16 << 10
)

// errQuiet is why a request was given up that brought nothing.
var errQuiet = fmt.Errorf("it brought nothing for long: %w", content.ErrUnavailable)

// Beside asks b once more for what a Get brings not at all, or by the drop, while the
// first request goes on; who is first serves the reader. However long a store is
// silent, there is always a young request that it may answer, and never more than one
// beside the first.
func Beside(b Bucket) Bucket { return beside{b} }

type beside struct{ Bucket }

func (b beside) Get(ctx context.Context, key string, r Range) (*Object, error) {
	first, cancel := context.WithCancelCause(ctx)
	c := b.chase(ctx, key, r, cancel)
	c.timer.Reset(quietMax)
	o, err := b.Bucket.Get(first, key, r)
	now := c.end()
	switch {
	case now != nil && err == nil: // overtaken all the same
		o.Body.Close()
	case now == nil && err == nil:
		now = &request{o, cancel}
	case now == nil:
		cancel(nil)
		return nil, err
	}
	info := now.object.Info
	off, length, err := r.Within(info.Size)
	if err != nil { // of a size that is not known there is no rest to ask for
		off, length = 0, 0
	}
	return &Object{info, &chased{b: b, ctx: ctx, info: info, now: now, at: off, off: off, end: off + length}}, nil
}

// request is one that was answered.
type request struct {
	object *Object
	cancel context.CancelCauseFunc
}

func (r *request) drop() error {
	err := r.object.Body.Close()
	r.cancel(nil)
	return err
}

// chase asks for a range beside, from when its timer says until one was answered, or
// its end.
type chase struct {
	b      beside
	parent context.Context // of the reader
	ctx    context.Context
	cancel context.CancelFunc
	timer  *time.Timer
	key    string
	at     Range
	passed context.CancelCauseFunc // of the request that is overtaken

	mu    sync.Mutex // guards what follows
	ended bool
	won   *request
}

// chase makes one whose timer is yet to be set.
func (b beside) chase(ctx context.Context, key string, at Range, passed context.CancelCauseFunc) *chase {
	c := &chase{b: b, parent: ctx, key: key, at: at, passed: passed}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.timer = time.AfterFunc(time.Hour, c.run)
	c.timer.Stop()
	return c
}

func (c *chase) run() {
	for {
		r, err := c.ask()
		if err == nil {
			c.win(r)
			return
		}
		if !errors.Is(err, content.ErrUnavailable) {
			return // an answer, which the first request will have too
		}
		select {
		case <-time.After(rivalPause):
		case <-c.ctx.Done():
			return
		}
	}
}

// ask sends a request and waits for its first byte.
func (c *chase) ask() (*request, error) {
	ctx, cancel := context.WithCancelCause(c.parent) // it outlives the chase, if it wins
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Canceled) })
	defer stop()
	late := time.AfterFunc(rivalMax, func() { cancel(errQuiet) })
	o, err := c.b.Bucket.Get(ctx, c.key, c.at)
	if err == nil {
		var first [1]byte
		n, rerr := io.ReadFull(o.Body, first[:])
		o.Body = &struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(first[:n]), o.Body), o.Body}
		if late.Stop() && (rerr == nil || rerr == io.EOF) {
			return &request{o, cancel}, nil
		}
		err = errors.Join(rerr, o.Body.Close())
	}
	late.Stop()
	if errors.Is(context.Cause(ctx), errQuiet) {
		err = errQuiet
	}
	cancel(nil)
	return nil, err
}

// win hands the request over, and gives up the one that it overtook.
func (c *chase) win(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		r.drop()
		return
	}
	c.won = r
	c.passed(errQuiet)
}

// take returns the request that has won, if one has: once.
func (c *chase) take() *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.won
	c.won = nil
	return r
}

// end ends the chase and returns what it has won.
func (c *chase) end() *request {
	c.timer.Stop()
	c.cancel()
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	return c.take()
}

// chased is a body that is asked for beside while it brings too little.
type chased struct {
	b    beside
	ctx  context.Context // of the Get that opened the body, which bounds its reads too
	info Info
	now  *request
	at   int64 // where its body stands, behind off while it repeats what the reader has
	off  int64 // how far the reader has come,
	end  int64 // and how far it goes

	rival *chase        // nil until a read begins to wait
	quiet time.Duration // that reads have waited since enough came; quietMax once it runs
	came  int64         // since then
}

func (b *chased) Read(p []byte) (int, error) {
	for len(p) > 0 && b.off < b.end {
		q := p
		if b.at < b.off {
			q = p[:min(int64(len(p)), b.off-b.at)]
		}
		n, err := b.wait(q)
		repeated := b.at < b.off
		b.at += int64(n)
		if repeated {
			n = 0
		}
		b.off += int64(n)
		if won := b.rival.take(); won != nil {
			err = b.change(won)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return b.now.object.Body.Read(p) // its end, or all of what has no known one
}

// wait reads once, while its rival's timer runs. Only that time counts: whoever reads
// may be slow itself.
func (b *chased) wait(p []byte) (int, error) {
	if b.came >= progressMin {
		b.rest()
	}
	if b.rival == nil {
		b.rival = b.b.chase(b.ctx, b.info.Key, Range{b.off, b.end - b.off}, b.now.cancel)
	}
	if b.quiet < quietMax {
		b.rival.timer.Reset(quietMax - b.quiet)
	}
	begun := time.Now()
	n, err := b.now.object.Body.Read(p)
	b.quiet += time.Since(begun)
	if b.quiet >= quietMax || !b.rival.timer.Stop() {
		b.quiet = quietMax
	}
	b.came += int64(n)
	return n, err
}

// rest ends the rival, and begins to count anew.
func (b *chased) rest() {
	if b.rival != nil && b.quiet < quietMax { // it has not begun, and serves for the next wait
		b.rival.at = Range{b.off, b.end - b.off}
	} else if b.rival != nil {
		if won := b.rival.end(); won != nil {
			won.drop()
		}
		b.rival = nil
	}
	b.quiet, b.came = 0, 0
}

// change goes over to the request that has won: the one before has been given up.
func (b *chased) change(won *request) error {
	from := b.rival.at.Offset
	b.quiet = quietMax
	b.rest()
	b.now.drop()
	b.now, b.at = won, from
	if o := won.object; o.ETag != b.info.ETag || o.Size != b.info.Size {
		return fmt.Errorf("read %s: %w", b.info.Key, errReplaced)
	}
	return nil
}

func (b *chased) Close() error {
	b.quiet = quietMax
	b.rest()
	return b.now.drop()
}
