package dir

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// TestSilentCallsAreLeftAlone asks a file system that answers no more: callers go when
// their time ends, only so many ask it, and what comes late is dropped.
func TestSilentCallsAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &Bucket{calls: make(chan struct{}, 3)}
		silent := make(chan struct{})
		var asked, dropped atomic.Int32
		ask := func(ctx context.Context) error {
			_, err := call(ctx, b, func() (int, error) {
				asked.Add(1)
				<-silent
				return 1, nil
			}, func(int) { dropped.Add(1) })
			return err
		}
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, content.ErrUnavailable) {
				t.Errorf("%v, want ErrUnavailable at the deadline", err)
			}
			cancel()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := ask(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, content.ErrUnavailable) {
			t.Errorf("%v: a caller who has gone says nothing of the folder", err)
		}
		if asked.Load() != 3 {
			t.Errorf("asked %d times, want 3", asked.Load())
		}
		close(silent)
		synctest.Wait()
		if dropped.Load() != 3 {
			t.Errorf("%d answers dropped, want 3", dropped.Load())
		}
		if err := ask(t.Context()); err != nil {
			t.Errorf("once it answers again: %v", err)
		}
	})
}

// TestAPutReturnsItsBody: whoever gave the bytes of a Put may change them once it has
// returned, though a call that hangs has not copied all of them.
func TestAPutReturnsItsBody(t *testing.T) {
	l := newLent(bucket.Bytes([]byte("bytes")))
	p := make([]byte, 5)
	if n, err := l.ReadAt(p, 0); n != 5 || err != nil && err != io.EOF {
		t.Fatalf("%d bytes, %v", n, err)
	}
	l.takeBack()
	if _, err := l.ReadAt(p, 0); !errors.Is(err, errAbandoned) {
		t.Fatalf("read after it was taken back: %v", err)
	}
}

// TestAPutThatHangsIsUnknown cuts a Put before and while it is published: only the
// second may have written anything.
func TestAPutThatHangsIsUnknown(t *testing.T) {
	b := open(t, t.TempDir())
	b.turn <- struct{}{} // another writer is at it, and hangs
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := b.Put(ctx, "a", bucket.Bytes([]byte("x")), bucket.IfAbsent())
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, bucket.ErrUnknown) {
		t.Fatalf("%v, want an outcome that is known: nothing", err)
	}
	<-b.turn
	if _, err := b.Put(t.Context(), "a", bucket.Bytes([]byte("x")), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
}

// TestReadsThatAreCopied reads as of a network mount, which takes another way.
func TestReadsThatAreCopied(t *testing.T) {
	b := open(t, t.TempDir())
	want := bytes.Repeat([]byte("grange"), 200_000)
	if _, err := b.Put(t.Context(), "a", bucket.Bytes(want), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, local := range []bool{true, false} {
		o, err := b.openObject("a")
		if err != nil {
			t.Fatal(err)
		}
		body := &part{ctx, b, o.File, local, 5, int64(len(want)) - 5}
		got, err := io.ReadAll(body)
		if err = errors.Join(err, body.Close()); err != nil || !bytes.Equal(got, want[5:len(want)-5]) {
			t.Errorf("local %v: %d bytes, %v", local, len(got), err)
		}
	}
	o, err := b.Get(ctx, "a", bucket.Range{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	_, err = o.Body.Read(make([]byte, 10))
	if err = errors.Join(err, o.Body.Close()); !errors.Is(err, context.Canceled) {
		t.Errorf("read after the end: %v", err)
	}
}
