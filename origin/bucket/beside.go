package bucket

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
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

// Beside asks b once more for what a Get brings not at all, or by the drop, while the first request goes on;
// who is first serves the reader. However long a store is silent, there is always a young request that it may
// answer, and never more than one beside the first.
func Beside(b Bucket) Bucket { return beside{inner{b}} }

type beside struct{ inner }

func (b beside) Get(ctx context.Context, key string, r Range) (*Object, error) {
	first, cancel := context.WithCancelCause(ctx)
	v := b.rival(ctx, key, func() Range { return r }, cancel)
	v.timer.Reset(quietMax)
	o, err := b.Bucket.Get(first, key, r)
	now := &request{o, cancel, r.Offset}
	if won := v.end(); won != nil { // overtaken, if only just
		if err == nil {
			now.drop()
		}
		now, err = won, nil
	}
	if err != nil {
		cancel(nil)
		return nil, err
	}
	info := now.object.Info
	off, length, err := r.Within(info.Size)
	if err != nil { // of a size that is not known there is no rest to ask for
		off, length = 0, 0
	}
	c := &chased{b: b, ctx: ctx, info: info, now: now, at: off, end: off + length}
	c.off.Store(off)
	return &Object{info, c}, nil
}

type request struct {
	object *Object
	cancel context.CancelCauseFunc
	from   int64 // the offset that was asked for
}

func (r *request) drop() error {
	err := r.object.Body.Close()
	r.cancel(nil)
	return err
}

// rival asks beside, from when its timer says until one request was answered, or its end.
type rival struct {
	timer *time.Timer
	stop  context.CancelFunc
	won   atomic.Pointer[request] // &ended once there is to be none
	ended request
}

// rival makes one whose timer is yet to be set, for the reader of ctx, who has come to a
// place. Passed gives up the request that is overtaken.
func (b beside) rival(ctx context.Context, key string, place func() Range, passed context.CancelCauseFunc) *rival {
	asking, stop := context.WithCancel(ctx)
	v := &rival{stop: stop}
	v.timer = time.AfterFunc(time.Hour, func() {
		r := b.answered(ctx, asking, key, place())
		switch {
		case r == nil:
		case v.won.CompareAndSwap(nil, r):
			passed(errQuiet)
		default:
			r.drop()
		}
	})
	v.timer.Stop()
	return v
}

// answered asks again and again until asking ends, or there is an answer: nil if it is one
// that the first request will have too.
func (b beside) answered(ctx, asking context.Context, key string, at Range) *request {
	for {
		r, err := b.ask(ctx, asking, key, at)
		if err == nil || !errors.Is(err, content.ErrUnavailable) {
			return r
		}
		select {
		case <-time.After(rivalPause):
		case <-asking.Done():
			return nil
		}
	}
}

// ask sends a request and waits for its first byte. It outlives the asking, if it wins.
func (b beside) ask(ctx, asking context.Context, key string, at Range) (*request, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(asking, func() { cancel(context.Canceled) })()
	late := time.AfterFunc(rivalMax, func() { cancel(errQuiet) })
	o, err := b.Bucket.Get(ctx, key, at)
	if err == nil {
		body := bufio.NewReaderSize(o.Body, 16) // the least: it passes on what is read in larger pieces
		_, err = body.Peek(1)
		if late.Stop() && (err == nil || err == io.EOF) {
			o.Body = struct {
				io.Reader
				io.Closer
			}{body, o.Body}
			return &request{o, cancel, at.Offset}, nil
		}
		err = errors.Join(err, o.Body.Close())
	}
	late.Stop()
	if errors.Is(context.Cause(ctx), errQuiet) {
		err = errQuiet
	}
	cancel(nil)
	return nil, err
}

func (v *rival) end() *request {
	v.timer.Stop()
	v.stop()
	if r := v.won.Swap(&v.ended); r != &v.ended {
		return r
	}
	return nil
}

// chased is a body that is asked for beside while it brings too little.
type chased struct {
	b    beside
	ctx  context.Context // of the Get that opened the body, which bounds its reads too
	info Info
	now  *request
	at   int64        // where its body stands, behind off while it repeats what the reader has
	off  atomic.Int64 // how far the reader has come,
	end  int64        // and how far it goes

	rival *rival        // nil until a read begins to wait
	quiet time.Duration // that reads have waited since enough came; quietMax once the rival asks
	came  int64         // since then
}

func (b *chased) Read(p []byte) (int, error) {
	for off := b.off.Load(); len(p) > 0 && off < b.end; off = b.off.Load() {
		repeated := b.at < off
		q := p
		if repeated {
			q = p[:min(int64(len(p)), off-b.at)]
		}
		n, err := b.wait(q)
		if b.at += int64(n); repeated {
			n = 0
		}
		b.off.Add(int64(n))
		if b.rival.won.Load() != nil {
			err = b.change()
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return b.now.object.Body.Read(p) // its end, or all of what has no known one
}

// wait reads once, while its rival's timer runs. Only that time counts: whoever reads may be slow itself.
func (b *chased) wait(p []byte) (int, error) {
	if b.came >= progressMin {
		b.rest()
	}
	if b.rival == nil {
		b.rival = b.b.rival(b.ctx, b.info.Key, func() Range { return Range{b.off.Load(), b.end - b.off.Load()} }, b.now.cancel)
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

// rest begins to count anew. A rival that has not begun serves for the next wait.
func (b *chased) rest() {
	if b.rival != nil && b.quiet >= quietMax {
		if won := b.rival.end(); won != nil {
			won.drop()
		}
		b.rival = nil
	}
	b.quiet, b.came = 0, 0
}

// change goes over to the request that has won: the one before has been given up.
func (b *chased) change() error {
	won := b.rival.end()
	b.now.drop()
	b.rival, b.now, b.at, b.quiet, b.came = nil, won, won.from, 0, 0
	if o := won.object; o.ETag != b.info.ETag || o.Size != b.info.Size {
		return fmt.Errorf("read %s: %w", b.info.Key, ErrReplaced)
	}
	return nil
}

func (b *chased) Close() error {
	b.quiet = quietMax
	b.rest()
	return b.now.drop()
}
