package records

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// pages lists all images, some at a time, as "name" or "name?" if unconfirmed.
func (m *member) pages(t fataler, limit int) []string { return m.pagesOf(t, "", limit) }

// pagesOf lists those images whose names have a prefix.
func (m *member) pagesOf(t fataler, begin string, limit int) (out []string) {
	t.Helper()
	for after := ""; ; {
		page, more := m.List(t.Context(), content.KindImage, begin, after, limit)
		for _, k := range page {
			after = k.Name
			if out = append(out, k.Name); !k.Confirmed {
				out[len(out)-1] += "?"
			}
		}
		if !more {
			return out
		}
		if len(page) != limit {
			t.Fatalf("a page of %d that is not the last, want %d", len(page), limit)
		}
	}
}

// TestPagesOfReferences: OCI references have one order at the origin and here.
func TestPagesOfReferences(t *testing.T) {
	w := newWorld(t)
	m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
	all := []string{"a", "a/b", "a/b:1", "a:1", "a-b", "a.b", "ab", "b"} // by what they are in a path
	for i, name := range all {
		w.publish(t, publisher, w.image(t, name, content.Mesh(), byte(i)))
	}
	for _, limit := range []int{1, 3, 100} {
		if got := m.pages(t, limit); !slices.Equal(got, all) {
			t.Errorf("by %d: %q, want %q", limit, got, all)
		}
	}
	if r, err := m.Resolve(t.Context(), "a:1", true); err != nil || r.Name != "a:1" || r.Kind != content.KindImage {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestPages: of whatever length, they make the same list: what the origin has, what only
// this node knows, and nothing that was deleted; and unchanged records are not read again.
func TestPages(t *testing.T) {
	w := newWorld(t)
	m, publisher := w.member(t, t.TempDir(), trust.RoleNode, "a"), w.signer(t, trust.RolePublisher, "b")
	var all []string
	for i := range 30 {
		name := fmt.Sprintf("n%02d", i)
		r := w.publish(t, publisher, w.image(t, name, content.Mesh(), byte(i)))
		switch {
		case i%5 == 1: // deleted, and this node may know
			if i%2 == 0 {
				m.lookup(t, content.KindImage, name)
			}
			w.publish(t, publisher, catalog.Change{Kind: r.Kind, Name: name, Base: &r, Delete: true})
		case i%7 == 3: // known here, and gone from the origin
			m.lookup(t, content.KindImage, name)
			if err := w.store.Delete(t.Context(), "records/image/"+name); err != nil {
				t.Fatal(err)
			}
			all = append(all, name+"?")
		default:
			all = append(all, name)
		}
	}
	w.put(t, content.KindImage, "n15x", []byte("junk"))
	for _, limit := range []int{1, 2, 7, 24, 100} {
		if got := m.pages(t, limit); !slices.Equal(got, all) {
			t.Errorf("by %d: %q, want %q", limit, got, all)
		}
	}
	for _, begin := range []string{"n", "n1", "n15", "n15x", "z"} {
		want := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !strings.HasPrefix(name, begin) })
		for _, limit := range []int{1, 7, 100} {
			if got := m.pagesOf(t, begin, limit); !slices.Equal(got, want) {
				t.Errorf("%s by %d: %q, want %q", begin, limit, got, want)
			}
		}
	}
	before := w.gets.Load()
	m.pages(t, 7)
	if n := w.gets.Load() - before; n > 2*5 { // the junk, twice at each look
		t.Errorf("%d reads of records that have not changed", n)
	}
	m.restart(t)
	before = w.gets.Load()
	if got := m.pages(t, 100); !slices.Equal(got, all) {
		t.Errorf("after a restart: %q, want %q", got, all)
	}
	if n := w.gets.Load() - before; n > 2 {
		t.Errorf("%d reads after a restart", n)
	}
	w.away.Store(true)
	for i, name := range all {
		all[i] = strings.TrimSuffix(name, "?") + "?"
	}
	if got := m.pages(t, 7); !slices.Equal(got, all) {
		t.Errorf("without the origin: %q, want %q", got, all)
	}
	if err := os.Truncate(filepath.Join(m.dir, "records", "index"), 100); err != nil {
		t.Fatal(err)
	}
	w.away.Store(false)
	m.restart(t)
	there := slices.DeleteFunc(slices.Clone(all), func(name string) bool { return name == "n03?" || name == "n10?" || name == "n17?" || name == "n24?" })
	for i, name := range there {
		there[i] = strings.TrimSuffix(name, "?")
	}
	if got := m.pages(t, 7); !slices.Equal(got, there) {
		t.Errorf("after the index was lost: %q, want %q", got, there)
	}
}

// TestWhatLeavesMemoryStays: more names than memory keeps, each as it was, tags and roots
// found without a look at any.
func TestWhatLeavesMemoryStays(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	m.entries, m.answers = newLRU[entry](8), newLRU[answered](16)
	const names = 100
	for i := range names {
		ch := w.image(t, fmt.Sprintf("n%03d", i), content.Mesh(), byte(i/2))
		if i%10 == 0 {
			body, err := catalog.DecodeImage(w.codec, ch.Body)
			if err != nil {
				t.Fatal(err)
			}
			body.Target = "n001"
			if ch.Body, err = body.Encode(w.codec); err != nil {
				t.Fatal(err)
			}
			ch.Kind = content.KindTag
		}
		if _, err := m.Commit(t.Context(), ch); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.entries.Len(); n > 8 {
		t.Errorf("%d in memory", n)
	}
	for i := range names {
		k, ok := m.Held(content.KindImage, fmt.Sprintf("n%03d", i))
		if !ok || k.Version != 1 || k.Head.Root != head(t, content.Mesh(), byte(i/2)).Root {
			t.Fatalf("%d: %+v", i, k)
		}
		if of, ok := m.OfRoot(k.Root, k.Scope); !ok || of.Root != k.Root {
			t.Errorf("%d is not found by its root", i)
		}
	}
	if tags := m.TagsOf("n001"); len(tags) != 10 || tags[1] != "n010" {
		t.Errorf("%q", tags)
	}
	k, _ := m.Held(content.KindTag, "n010")
	if _, err := m.Commit(t.Context(), catalog.Change{Kind: k.Kind, Name: k.Name, Base: &k.Record, Delete: true}); err != nil {
		t.Fatal(err)
	}
	if tags := m.TagsOf("n001"); len(tags) != 9 {
		t.Errorf("%q", tags)
	}
	if !m.roots[rootKey{k.Root, k.Scope}] {
		t.Error("a root was forgotten that another name stands for")
	}
}

// TestRolledBackWhileRunning: an older record than this node has seen is told apart, and
// one that is gone altogether does not begin anew.
func TestRolledBackWhileRunning(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	first, err := m.Commit(t.Context(), w.image(t, "debian", content.Mesh(), 1))
	if err != nil {
		t.Fatal(err)
	}
	ch := w.image(t, "debian", content.Mesh(), 2)
	ch.Base = &first
	if _, err := m.Commit(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	w.put(t, content.KindImage, "debian", first.Sealed)
	if k := m.lookup(t, content.KindImage, "debian"); k.Version != 2 || k.Confirmed || k.Doubt == "" {
		t.Errorf("an older version came: %d, confirmed %t, %q", k.Version, k.Confirmed, k.Doubt)
	}
	if got := m.pages(t, 10); !slices.Equal(got, []string{"debian?"}) {
		t.Errorf("listed: %q", got)
	}
	if err := w.store.Delete(t.Context(), "records/image/debian"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Lookup(t.Context(), content.KindImage, "debian", true); err == nil {
		t.Error("it is gone, and found")
	}
	if r, err := m.Commit(t.Context(), w.image(t, "debian", content.Mesh(), 3)); err != nil || r.Version != 3 {
		t.Errorf("version %d after 2, %v", r.Version, err)
	}
}

// hooked calls after each Get, before its answer is passed on.
type hooked struct {
	bucket.Bucket
	after func()
}

func (h hooked) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	o, err := h.Bucket.Get(ctx, key, r)
	h.after()
	return o, err
}

// TestALookOvertakenByWrites holds a look up while two later versions are written: it is
// no rollback, and gets the latest.
func TestALookOvertakenByWrites(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	old, overtake := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := false
	m.origin = w.catalog(t, m.signer, hooked{w.store, func() {
		if slow {
			once.Do(func() { close(old); <-overtake })
		}
	}})
	r, err := m.Commit(t.Context(), w.image(t, "debian", content.Mesh(), 1))
	if err != nil {
		t.Fatal(err)
	}
	slow = true
	result := make(chan Known, 1)
	go func() { result <- m.lookup(t, content.KindImage, "debian") }()
	<-old
	for i := range 2 {
		ch := w.image(t, "debian", content.Mesh(), byte(i+2))
		ch.Base = &r
		if r, err = m.Commit(t.Context(), ch); err != nil {
			t.Fatal(err)
		}
	}
	close(overtake)
	if k := <-result; k.Version != 3 || k.Doubt != "" {
		t.Errorf("version %d, %q", k.Version, k.Doubt)
	}
}
