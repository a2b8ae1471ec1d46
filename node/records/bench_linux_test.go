package records

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

const benchNames = 100_000

// fill writes records past the bucket, as its syncs would take minutes.
func (w *world) fill(b *testing.B, folder string, s trust.Signer) {
	b.Helper()
	if err := os.MkdirAll(filepath.Join(folder, "records", "image"), 0o700); err != nil {
		b.Fatal(err)
	}
	for i := range benchNames {
		ch := w.image(b, fmt.Sprintf("name-%06d", i), content.Mesh(), byte(i))
		k := w.sealed(b, s, ch, 1)
		if err := os.WriteFile(filepath.Join(folder, "records", "image", ch.Name), k.Sealed, 0o600); err != nil {
			b.Fatal(err)
		}
	}
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
	folder, data := filepath.Join(b.TempDir(), "origin"), b.TempDir()
	s := w.signer(b, trust.RolePublisher, "a")
	began := time.Now()
	w.fill(b, folder, s)
	b.Logf("filled in %s", time.Since(began))
	store, err := dir.Open(b.Context(), folder, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	open := func() *Names {
		var n *Names
		c, err := catalog.New(catalog.Config{Bucket: store, Verifier: w.verifier, Signer: s, Recall: func(kind content.Kind, name string) (catalog.Record, bool) { return n.Recall(kind, name) }})
		if err != nil {
			b.Fatal(err)
		}
		reader := func() *catalog.Catalog { return c }
		n, err = New(Config{
			Dir: data, Reader: reader, Writer: reader, Lost: func(error) {}, Verifier: w.verifier, Signer: s,
			Ask:   func(context.Context, Question, int) []Answer { return nil },
			Holds: func(content.CID) bool { return false },
			Learn: func(Known) {}, Forget: func(content.CID, content.Scope) {},
			Codec: w.codec, Now: time.Now, Log: slog.New(slog.DiscardHandler),
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
			if page, more = n.List(b.Context(), content.KindImage, after, 1000); len(page) > 0 {
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
	took("first page of 100, nothing known", func() { n.List(b.Context(), content.KindImage, "", 100) })
	took("first whole list", func() {
		if count := list(n); count != benchNames {
			b.Fatalf("%d names", count)
		}
	})
	b.Logf("heap: %d bytes a name", (heap()-before)/benchNames)
	b.Logf("resolves a second of CPU after it: %.0f", resolve(n, 3*time.Second))
	took("second whole list", func() { list(n) })
	b.Logf("resolves a second of CPU after it: %.0f", resolve(n, 4*time.Second))
	took("first page of 100", func() { n.List(b.Context(), content.KindImage, "", 100) })
	took("page of 100 in the middle", func() { n.List(b.Context(), content.KindImage, "name-050000", 100) })
	<-time.After(freshFor + time.Second)
	b.Logf("resolves a second of CPU, none fresh: %.0f", resolve(n, 4*time.Second))
	b.Logf("heap: %d bytes a name", (heap()-before)/benchNames)
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
	n.Close()
	took("start", func() { n = open() })
	took("first page of 100 after it", func() { n.List(b.Context(), content.KindImage, "", 100) })
	b.Logf("resolves a second of CPU after it: %.0f", resolve(n, 4*time.Second))
	n.Close()
}
