package records

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

const benchNames = 100_000

// paged is a store that finds its place in a list at once, as real ones do.
type paged struct {
	*mem.Bucket
	all      []bucket.Info // in order of keys
	requests atomic.Int64
}

func (p *paged) place(key string) int {
	i, _ := slices.BinarySearchFunc(p.all, key, func(a bucket.Info, key string) int { return strings.Compare(a.Key, key) })
	return i
}

// List implements bucket.Bucket.
func (p *paged) List(_ context.Context, prefix, after string) iter.Seq2[bucket.Info, error] {
	return func(yield func(bucket.Info, error) bool) {
		for _, info := range p.all[p.place(max(prefix, after+"\x00")):] {
			if !strings.HasPrefix(info.Key, prefix) || !yield(info, nil) {
				return
			}
		}
	}
}

// Get implements bucket.Bucket.
func (p *paged) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	p.requests.Add(1)
	return p.Bucket.Get(ctx, key, r)
}

// Put implements bucket.Bucket.
func (p *paged) Put(ctx context.Context, key string, body bucket.Body, cond bucket.Condition) (bucket.Info, error) {
	p.requests.Add(1)
	info, err := p.Bucket.Put(ctx, key, body, cond)
	if i := p.place(key); err == nil && i < len(p.all) && p.all[i].Key == key {
		p.all[i] = info
	}
	return info, err
}

// fill returns a store with records of images.
func (w *world) fill(b *testing.B, s trust.Signer) *paged {
	b.Helper()
	p := &paged{Bucket: w.store}
	for i := range benchNames {
		k := w.sealed(b, s, w.image(b, fmt.Sprintf("name-%06d", i), content.Mesh(), byte(i)), 1)
		info, err := w.store.Put(b.Context(), "records/"+key(k.Kind, k.Name), bucket.Bytes(k.Sealed), bucket.Condition{})
		if err != nil {
			b.Fatal(err)
		}
		p.all = append(p.all, info)
	}
	return p
}

// cpu is what this process has used: others may be busy on the machine.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkNames is what a node with 100,000 names takes.
func BenchmarkNames(b *testing.B) {
	w := newWorld(b)
	data := b.TempDir()
	s := w.signer(b, trust.RolePublisher, "a")
	began := time.Now()
	store := w.fill(b, s)
	b.Logf("filled in %s", time.Since(began))
	now := time.Now() // stands still, but where it is moved: so all is as fresh as it was
	open := func() *Names {
		var n *Names
		c, err := catalog.New(catalog.Config{Bucket: store, Verifier: w.verifier, Signer: s, Now: func() time.Time { return now }, Recall: func(kind content.Kind, name string) (catalog.Record, bool) { return n.Recall(kind, name) }})
		if err != nil {
			b.Fatal(err)
		}
		reader := func() *catalog.Catalog { return c }
		n, err = New(Config{
			Dir: data, Reader: reader, Writer: reader, Lost: func(error) {}, Verifier: w.verifier, Signer: s,
			Ask:   func(context.Context, Question, int) []Answer { return nil },
			Holds: func(content.CID) bool { return false },
			Learn: func(Known) {}, Forget: func(content.CID, content.Scope) {},
			Codec: w.codec, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	list := func(n *Names) (count int) {
		after, more := "", true
		for more {
			var page []Known
			if page, more = n.List(b.Context(), content.KindImage, "", after, 1000); len(page) > 0 {
				count, after = count+len(page), page[len(page)-1].Name
			}
		}
		return count
	}
	resolve := func(n *Names, d time.Duration) float64 {
		began, count := cpu(), 0
		for cpu()-began < d {
			if _, err := n.Resolve(b.Context(), fmt.Sprintf("name-%06d", rand.IntN(benchNames)), true); err != nil && !errors.Is(err, content.ErrNotFound) { // one is removed
				b.Fatal(err)
			}
			count++
		}
		return float64(count) / (cpu() - began).Seconds()
	}
	took := func(what string, f func()) {
		began, used := time.Now(), cpu()
		f()
		b.Logf("%s: %s, %s of CPU", what, time.Since(began), cpu()-used)
	}
	before := heap()
	n := open()
	took("first page of 100, nothing known", func() { n.List(b.Context(), content.KindImage, "", "", 100) })
	took("first whole list", func() {
		if count := list(n); count != benchNames {
			b.Fatalf("%d names", count)
		}
	})
	b.Logf("heap: %d bytes a name", (heap()-before)/benchNames)
	b.Logf("resolves a second of CPU, all fresh: %.0f", resolve(n, 3*time.Second))
	took("second whole list", func() { list(n) })
	took("first page of 100", func() { n.List(b.Context(), content.KindImage, "", "", 100) })
	took("page of 100 in the middle", func() { n.List(b.Context(), content.KindImage, "", "name-050000", 100) })
	now = now.Add(freshFor + time.Second)
	b.Logf("resolves a second of CPU, fresh where they were asked for before: %.0f", resolve(n, 4*time.Second))
	b.Logf("heap: %d bytes a name", (heap()-before)/benchNames)
	requests := store.requests.Load()
	took("rm", func() {
		k, err := n.Lookup(b.Context(), content.KindImage, "name-000777", true)
		if err == nil {
			_, err = n.Commit(b.Context(), catalog.Change{Kind: k.Kind, Name: k.Name, Base: &k.Record, Delete: true})
		}
		if err != nil {
			b.Fatal(err)
		}
		n.TagsOf("name-000777")
	})
	b.Logf("rm: %d requests", store.requests.Load()-requests)
	n.Close()
	took("start", func() { n = open() })
	took("first page of 100 after it", func() { n.List(b.Context(), content.KindImage, "", "", 100) })
	n.Close()
}
