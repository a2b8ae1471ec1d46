package node

import (
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/images/follow"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/trust"
)

// TestASeedFollows names without credentials: by members' word, from members' caches; what
// is not public it never hears of, and without the origin it goes on.
func TestASeedFollows(t *testing.T) {
	var later atomic.Int64
	m := &mesh{t: t, origin: t.TempDir()}
	m.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	m.first, _ = m.start(t.TempDir(), "first", "")
	m.publishDisks("debian-1", "debian-2", "other")
	source, _ := disk(t)
	v, err := m.first.Images.Import(t.Context(), "debian-private", images.ImportRequest{Options: convert.Options{Path: source, Format: "raw"}, Scope: content.Mesh()})
	if why := m.first.done(t, v, err); why != "" {
		t.Fatal(why)
	}
	tag := func(image string) {
		t.Helper()
		if _, err := m.first.Images.Tag(t.Context(), image, "stable"); err != nil {
			t.Fatal(err)
		}
	}
	tag("debian-1")
	m.follow = []follow.Pattern{{Kind: content.KindTag, Glob: "stable"}, {Glob: "debian-*"}}
	data := t.TempDir()
	seed, stop := m.startAs(trust.RoleSeed, data, "seed", m.token(trust.RoleSeed))
	warm := func(names ...string) func() bool {
		return func() bool {
			f := seed.Images.Followed()
			all := f.Names == len(names) && f.States[follow.Warm] == len(names)
			for _, name := range names {
				i, err := seed.Images.Get(t.Context(), name)
				all = all && err == nil && i.Followed != nil
			}
			return all
		}
	}
	m.await("all that is public is warm", warm("stable", "debian-1", "debian-2"))
	tag("other")
	m.await("the tag has moved on", func() bool {
		i, err := seed.Images.Get(t.Context(), "stable")
		return err == nil && i.Followed.State == follow.Warm && i.Followed.Version == 2
	})
	for _, unknown := range []string{"other", "debian-private"} {
		if _, ok := seed.Names.Held(content.KindImage, unknown); ok {
			t.Errorf("it holds the record of %s", unknown)
		}
	}
	if _, err := m.first.Images.Remove(t.Context(), "debian-2"); err != nil {
		t.Fatal(err)
	}
	m.await("the deleted name is missed", func() bool { // it is told of no deletion
		names, err := seed.matching(t.Context(), m.follow)
		return err == nil && len(names) == 2
	})
	if !warm("stable", "debian-1", "debian-2")() {
		t.Error("it is let go at once, on one member's word")
	}
	calls := 0
	m.await("what was deleted is let go", func() bool {
		if calls++; calls%80 == 0 {
			later.Add(int64(9 * time.Hour))
		}
		return warm("stable", "debian-1")()
	})
	if err := os.Rename(m.origin, m.origin+".away"); err != nil {
		t.Fatal(err)
	}
	stop()
	before := m.opened.Load()
	seed, _ = m.startAs(trust.RoleSeed, data, "seed", "")
	m.await("a restart without the origin", warm("stable", "debian-1", "debian-2")) // nobody can list names now
	if b := seed.fetch.Bytes(); b.Farm+b.Swarm+b.Origin > 0 || m.opened.Load() > before {
		t.Errorf("after a restart it fetches again: %+v", b)
	}
	if pins := seed.cache.Pinned(); len(pins) != 3 || slices.ContainsFunc(pins, func(p string) bool { return p[0] != '@' }) {
		t.Errorf("it keeps %v", pins)
	}
}
