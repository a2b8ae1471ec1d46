package bucket_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/mem"
)

// liar is a store that changes what it says, by the answers so far: a put and a get, twice, and then a list.
type liar struct {
	bucket.Bucket
	answers int
	lie     func(answer int, info *bucket.Info)
	last    *bucket.Object // the first one that was read
	stale   bool           // it is read again
	tag     string         // an ETag that it gives to all
	lists   []string       // what lists show instead: "all", "nothing", "ghost"
}

func (l *liar) say(info bucket.Info) bucket.Info {
	if l.lie != nil {
		l.lie(l.answers, &info)
	}
	l.answers++
	return info
}

func (l *liar) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	if l.tag != "" && cond.ETag() == l.tag {
		cond = bucket.Condition{}
	}
	info, err := l.Bucket.Put(ctx, key, body, cond)
	return l.say(info), err
}

func (l *liar) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	if l.stale && l.answers == 3 {
		now, err := l.Bucket.Get(ctx, key, r)
		if err == nil {
			l.last.Info, l.last.Body = now.Info, now.Body
			_, err = l.Bucket.Put(ctx, key, bucket.Bytes([]byte("first")), bucket.Condition{})
		}
		if err != nil {
			return nil, err
		}
		o, err := l.Bucket.Get(ctx, key, r)
		if err == nil {
			o.Info = now.Info
		}
		return o, err
	}
	o, err := l.Bucket.Get(ctx, key, r)
	if err == nil {
		o.Info = l.say(o.Info)
		l.last = o
	}
	return o, err
}

func (l *liar) List(ctx context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	show := "all"
	if len(l.lists) > 0 {
		show, l.lists = l.lists[0], l.lists[1:]
	}
	return func(yield func(bucket.Info, error) bool) {
		if show == "ghost" {
			yield(l.last.Info, nil)
		}
		for info, err := range l.Bucket.List(ctx, prefix, after) {
			if show != "nothing" && !yield(l.say(info), err) {
				return
			}
		}
	}
}

// undead is a store that still reads what was deleted.
type undead struct{ bucket.Bucket }

func (undead) Delete(context.Context, string) error { return nil }

func (undead) List(context.Context, string, string) iter.Seq2[bucket.Info, error] {
	return func(func(bucket.Info, error) bool) {}
}

func TestAStoreThatContradictsItself(t *testing.T) {
	at := func(n int, change func(*bucket.Info)) func(int, *bucket.Info) {
		return func(answer int, info *bucket.Info) {
			if answer == n {
				change(info)
			}
		}
	}
	later := func(d time.Duration) func(*bucket.Info) {
		return func(info *bucket.Info) { info.Modified = info.Modified.Add(d) }
	}
	const put, get, putAgain, getAgain, list = 0, 1, 2, 3, 4
	for what, l := range map[string]liar{
		"no Date":                  {lie: at(put, func(info *bucket.Info) { info.Now = time.Time{} })},
		"to a list has no Date":    {lie: at(list, func(info *bucket.Info) { info.Now = time.Time{} })},
		"is before the last":       {lie: at(getAgain, func(info *bucket.Info) { info.Now = info.Now.Add(-time.Minute) })},
		"ETag":                     {lie: at(get, func(info *bucket.Info) { info.ETag = "other" })},
		"a get of an object":       {lie: at(getAgain, func(info *bucket.Info) { info.ETag = "other" })},
		"is 1h5m0s old":            {lie: at(getAgain, later(-65*time.Minute))},
		"is -3m0s old":             {lie: at(getAgain, later(3*time.Minute))},
		"a list has a Last":        {lie: at(list, later(-65*time.Minute))},
		"when an object was":       {lie: at(get, func(info *bucket.Info) { info.Modified = time.Time{} })},
		"is before the one":        {lie: func(n int, info *bucket.Info) { later(map[int]time.Duration{get: time.Minute}[n])(info) }},
		"is read as \"first\"":     {stale: true},
		"a list of an object":      {lie: at(list, func(info *bucket.Info) { info.ETag = "other" })},
		"and 5 bytes":              {lie: at(list, func(info *bucket.Info) { info.Size = 5 })},
		"is not listed":            {lists: []string{"nothing"}},
		"just deleted is listed":   {lists: []string{"all", "ghost"}},
		"has the ETag \"e\" still": {tag: "e", lie: func(_ int, info *bucket.Info) { info.ETag = "e" }},
	} {
		t.Run(what, func(t *testing.T) {
			store := mem.New(t, mem.Config{})
			l.Bucket = store
			err := bucket.ProbeOrder(t.Context(), &l)
			if !errors.Is(err, bucket.ErrDoubt) || !strings.Contains(err.Error(), what) {
				t.Fatalf("%v, want ErrDoubt and %q", err, what)
			}
			if left := store.Keys(""); len(left) > 0 {
				t.Fatalf("%v is left", left)
			}
		})
	}
	store := mem.New(t, mem.Config{})
	err := bucket.ProbeOrder(t.Context(), &liar{Bucket: undead{store}, lists: []string{"ghost", "all"}})
	if !errors.Is(err, bucket.ErrDoubt) || !strings.Contains(err.Error(), "can be read") {
		t.Fatalf("a store that deletes nothing: %v", err)
	}
	away := mem.New(t, mem.Config{Fault: func(mem.Call) mem.Fault { return mem.Fault{Err: content.ErrForbidden} }})
	if err := bucket.ProbeOrder(t.Context(), away); !errors.Is(err, content.ErrForbidden) || errors.Is(err, bucket.ErrDoubt) {
		t.Fatalf("a store that refuses: %v", err)
	}
}
