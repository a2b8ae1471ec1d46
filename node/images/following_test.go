package images

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// image publishes a disk of so many chunks that no other seed gives.
func (w *world) image(t *testing.T, name string, chunks int, seed byte) {
	t.Helper()
	disk := make([]byte, chunks*content.ChunkSizeDefault)
	for i := range chunks {
		binary.LittleEndian.PutUint64(disk[i*content.ChunkSizeDefault:], uint64(i+1)|uint64(seed)<<56)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	view, err := w.Import(t.Context(), name, ImportRequest{Options: convert.Options{Path: path, Format: convert.Raw}, Replace: true, Scope: content.Mesh()})
	if err == nil {
		view, err = w.cfg.Operations.Wait(t.Context(), view.ID)
	}
	if err != nil || view.Error != "" {
		t.Fatalf("import %s: %v, %s", name, err, view.Error)
	}
}

func (w *world) tag(t *testing.T, image, tag string) {
	t.Helper()
	if _, err := w.Tag(t.Context(), image, tag); err != nil {
		t.Fatal(err)
	}
}

// other is another node of that origin, with a cache in that folder.
func (w *world) other(t *testing.T, dir string, quota int64, names ...string) *Images {
	t.Helper()
	cfg := w.cfg
	var err error
	if cfg.Cache, err = cache.Open(cache.Config{Dir: dir, Quota: quota, ScrubRate: -1}); err != nil {
		t.Fatal(err)
	}
	cfg.Self, cfg.Mesh, cfg.Follow = dir, func() int { return 1 }, nil
	for _, text := range names {
		var p follow.Pattern
		if err := p.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		cfg.Follow = append(cfg.Follow, p)
	}
	cfg.Holder = func(peer.ID) Holder { return Holder{ID: dir, Farm: cfg.Signer.Identity().Farm} } // alone
	cfg.Operations = operations.New(cfg.Log, cfg.Now)
	cfg.Fetcher = newFetcher(t, cfg, w.store)
	var im *Images
	cfg.Matching = func(ctx context.Context, patterns []follow.Pattern) ([]Match, error) {
		return im.Matches(ctx, cfg.Signer.Identity(), patterns)
	}
	im = New(cfg)
	return im
}

// run runs a node until the returned function ends it.
func run(t *testing.T, im *Images) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- im.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := im.cfg.Cache.Close(); err != nil {
			t.Error(err)
		}
	}
}

// await waits until a node stands like that.
func await(t *testing.T, im *Images, what string, ok func(*Followed) bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(time.Minute); !ok(im.Followed()); <-tick.C {
		if time.Now().After(until) {
			t.Fatalf("waited in vain for %s: %+v", what, im.Followed())
		}
	}
}

func settled(f *Followed) bool {
	return f.Names > 0 && f.States[follow.Warm]+f.States[follow.NoRoom] == f.Names
}

func (im *Images) followedRoots() (n int) {
	for _, pin := range im.cfg.Cache.Pinned() {
		if strings.HasPrefix(pin, pinPrefix) {
			n++
		}
	}
	return n
}

// TestAThousandNames that one pattern matches are followed, whatever becomes of them, for
// a few requests of the origin, and a restart costs nothing.
func TestAThousandNames(t *testing.T) {
	var lists, packs atomic.Int64
	w := newWorldOver(t, mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		switch {
		case c.Op == mem.List:
			lists.Add(1)
		case c.Op == mem.Get && strings.HasPrefix(c.Key, "packs/"):
			packs.Add(1)
		}
		return mem.Fault{}
	}}))
	for i := range 4 {
		w.image(t, fmt.Sprint("image", i), 8, byte(i+1))
	}
	const names = 1000
	for i := range names {
		w.tag(t, fmt.Sprint("image", i%3), fmt.Sprint("v", i))
	}
	dir := t.TempDir()
	n := w.other(t, dir, 0, "tag:v*", "image:image0", "image:never")
	end := run(t, n)
	await(t, n, "all names", func(f *Followed) bool { return f.States[follow.Warm] == names+1 })
	if f := n.Followed(); len(f.Behind) > 0 || !slices.Equal(f.Missing, []string{"image:never"}) || n.followedRoots() != 3 {
		t.Errorf("%+v, %d roots are kept", f, n.followedRoots())
	}
	before := lists.Load()
	for range 50 { // others ask as well
		if m, err := n.Matches(t.Context(), w.cfg.Signer.Identity(), n.cfg.Follow); err != nil || len(m) != names+1 {
			t.Fatalf("%d names, %v", len(m), err)
		}
	}
	if got := lists.Load() - before; got > 4 {
		t.Errorf("50 that ask have the origin list %d times", got)
	}
	w.tag(t, "image3", "v0")
	await(t, n, "a tag that has moved on", func(f *Followed) bool { return settled(f) && n.followedRoots() == 4 })
	for i := 0; i < names; i += 3 { // those of image0, which is followed by itself, too
		if _, err := w.Remove(t.Context(), fmt.Sprint("v", i)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, n, "tags that are deleted", func(f *Followed) bool { return settled(f) && f.Names == names+1-(names+2)/3 })
	if n.followedRoots() != 3 {
		t.Errorf("%d roots are kept", n.followedRoots())
	}
	w.away = true
	end()
	before = packs.Load()
	n = w.other(t, dir, 0, "tag:v*", "image:image0")
	end = run(t, n)
	await(t, n, "a restart without the origin", func(f *Followed) bool { return settled(f) && f.Names == names+1-(names+2)/3 })
	if got := packs.Load() - before; got > 0 {
		t.Errorf("a restart reads %d times at the origin", got)
	}
	end()
	w.away = false
	n = w.other(t, dir, 0)
	end = run(t, n)
	defer end()
	for until := time.Now().Add(time.Minute); n.followedRoots() > 0 && time.Now().Before(until); {
		<-time.After(20 * time.Millisecond)
	}
	if n.followedRoots() > 0 || n.Followed() != nil {
		t.Error("without --follow all is kept still")
	}
}

// TestMoreNamesThanANodeFollows: it stays with the first that it saw, and others have their
// places when they are gone.
func TestMoreNamesThanANodeFollows(t *testing.T) {
	w := newWorld(t)
	w.image(t, "image", 1, 1)
	for i := range FollowedMax + 1 {
		w.tag(t, "image", fmt.Sprintf("v%04d", i))
	}
	n := w.other(t, t.TempDir(), 0, "tag:*")
	ctx, cancel := context.WithCancel(t.Context())
	look := func(names ...string) {
		t.Helper()
		clear(n.listings.lately) // or it is listed some seconds later
		n.follower.lookOver(ctx)
		if f := n.Followed(); f.Names != FollowedMax || slices.ContainsFunc(names, func(name string) bool { return n.follower.standing(name) == nil }) {
			t.Errorf("of %v and others %d are followed", names, f.Names)
		}
	}
	look("v0000", "v2999")
	w.tag(t, "image", "a")
	look("v0000", "v2999")
	if _, err := w.Remove(t.Context(), "v0000"); err != nil {
		t.Fatal(err)
	}
	clear(n.listings.lately)
	n.follower.lookOver(ctx) // which finds a place
	look("a", "v2999")
	cancel()
	n.follower.work.Wait()
	if err := n.cfg.Cache.Close(); err != nil {
		t.Error(err)
	}
}

// TestQuotaTooSmall: the first images are kept whole, and the others are named; what comes
// after does not push them out.
func TestQuotaTooSmall(t *testing.T) {
	w := newWorld(t)
	for i := range 4 {
		w.image(t, fmt.Sprint("image", i), 512, byte(i+1)) // 64 MiB
	}
	n := w.other(t, t.TempDir(), 256<<20, "image3", "image:*")
	defer run(t, n)()
	await(t, n, "what fits", settled)
	for _, name := range []string{"image0", "image1", "image3"} {
		if i, err := n.Get(t.Context(), name); err != nil || i.Followed.State != follow.Warm {
			t.Errorf("%s: %+v, %v", name, i.Followed, err)
		}
	}
	f := n.Followed()
	if len(f.Behind) != 1 || f.Behind[0].Name != "image2" || f.Behind[0].State != follow.NoRoom || !strings.Contains(f.Behind[0].Why, "raise its quota") {
		t.Errorf("%+v", f.Behind)
	}
	pinned := n.cfg.Cache.Stats().Pinned
	k, err := n.cfg.Names.Lookup(t.Context(), content.KindImage, "image2", false)
	if err != nil {
		t.Fatal(err)
	}
	m, err := n.cfg.Fetcher.Learn(RootOf(k))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(16) { // a guest reads some of what has no room
		if err := m.ReadChunk(t.Context(), i, 0, make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
	}
	await(t, n, "the last copy is kept", func(f *Followed) bool { return n.cfg.Cache.Stats().Pinned >= pinned+16 })
	n.cfg.Cache.Evict(1 << 30)
	for i := range uint64(16) {
		if !m.TryReadChunk(i, 0, make([]byte, 512)) && n.cfg.Cache.Stats().Pinned < pinned+16 {
			t.Fatalf("chunk %d of the last copy was evicted", i)
		}
	}
	if f := n.Followed(); f.States[follow.Warm] != 3 || pinned < 3*512 {
		t.Errorf("%+v", f)
	}
	if _, err := w.Remove(t.Context(), "image2"); err != nil {
		t.Fatal(err)
	}
	await(t, n, "what is followed no more is let go", func(f *Followed) bool { return n.cfg.Cache.Stats().Pinned == pinned })
}

// TestWhoIsTold which names there are: no stranger, and a seed only of what is public.
func TestWhoIsTold(t *testing.T) {
	w := newWorld(t)
	w.image(t, "private", 1, 1)
	all := []follow.Pattern{{Glob: "*"}, {Glob: "private"}}
	for who, want := range map[trust.Identity]int{{}: -1, {Role: trust.RoleSeed}: 0, {Role: trust.RoleNode, Farm: "beta"}: 1, w.cfg.Signer.Identity(): 1} {
		m, err := w.Matches(t.Context(), who, all)
		if want < 0 && err == nil || want >= 0 && (err != nil || len(m) != want) {
			t.Errorf("%s of %q: %v, %v", who.Role, who.Farm, m, err)
		}
	}
}

func TestIsLast(t *testing.T) {
	const self, farm = "self", "alpha"
	has := func(id, farm string, chunks uint64) Holder { return Holder{ID: id, Farm: farm, Chunks: chunks} }
	for _, x := range []struct {
		holders []Holder
		want    bool
	}{
		{nil, false},
		{[]Holder{has("other", farm, 5)}, false},
		{[]Holder{has(self, farm, 5)}, true},
		{[]Holder{has(self, farm, 5), has("other", farm, 9)}, true},
		{[]Holder{has(self, farm, 5), has("other", farm, 10)}, false},
		{[]Holder{has(self, farm, 10), has("zother", farm, 10)}, true},
		{[]Holder{has(self, farm, 9), has("zother", farm, 10)}, false},
		{[]Holder{has(self, farm, 10), has("other", "beta", 10), has("seed", "", 10)}, true},
	} {
		if got := isLast(Image{Chunks: 10, Holders: x.holders}, self, farm); got != x.want {
			t.Errorf("%+v: %t", x.holders, got)
		}
	}
}
