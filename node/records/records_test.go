package records

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// TestResolveTakesNoPath asks for names that would be files elsewhere.
func TestResolveTakesNoPath(t *testing.T) {
	m := newWorld(t).member(t, t.TempDir(), trust.RoleNode, "a")
	if err := os.WriteFile(filepath.Join(m.dir, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"..:secret", "../x:secret", "/:secret", ":secret", "image:../secret", "records:x/y", "../../../../dev:zero", "snapshot:x@", "snapshot:../x@1", "image:", "a//b", ""} {
		for _, trusted := range []bool{true, false} {
			_, err := m.Resolve(t.Context(), name, trusted)
			is(t, name, err, content.ErrInvalid)
		}
	}
	if m.asks.Load() > 0 || m.w.gets.Load() > 0 {
		t.Errorf("%d questions to members, %d to the store", m.asks.Load(), m.w.gets.Load())
	}
}

// TestAbsentNamesAreRemembered, for some seconds, and not beyond their making here.
func TestAbsentNamesAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
		look := func() error {
			_, err := m.Lookup(t.Context(), content.KindImage, "debian", false)
			return err
		}
		for range 100 {
			is(t, "absent", look(), content.ErrNotFound)
		}
		if n := w.gets.Load(); n != 1 {
			t.Errorf("%d requests for a name that is not there", n)
		}
		pause(t, freshFor)
		is(t, "absent still", look(), content.ErrNotFound)
		if n := w.gets.Load(); n != 2 {
			t.Errorf("%d requests after a while", n)
		}
		if _, err := m.Commit(t.Context(), w.image(t, "debian", content.Mesh(), 1)); err != nil {
			t.Fatal(err)
		}
		is(t, "made here", look(), nil)
	})
}

// TestStrangersAreToldOneThing: what is deleted, private or was never made takes the
// same words, the same time and the same requests, whatever members asked before, and
// changes nothing that the operator sees.
func TestStrangersAreToldOneThing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
		w.publish(t, m.signer, w.image(t, "private", content.Farm("a"), 1))
		w.publish(t, m.signer, w.image(t, "warm-private", content.Farm("a"), 1))
		w.publish(t, m.signer, w.image(t, "mesh", content.Mesh(), 2))
		w.publish(t, m.signer, w.image(t, "open", content.Public(), 3))
		for _, name := range []string{"deleted", "warm-deleted"} {
			gone := w.publish(t, m.signer, w.image(t, name, content.Public(), 4))
			w.publish(t, m.signer, catalog.Change{Kind: content.KindImage, Name: name, Base: &gone, Delete: true})
		}
		m.Resolve(t.Context(), "warm-private", true)
		m.Resolve(t.Context(), "warm-deleted", true)
		m.Resolve(t.Context(), "warm-absent", true)
		began := time.Now()
		if r, err := m.Resolve(t.Context(), "open", false); err != nil || r.Version != 1 || !r.Confirmed || time.Since(began) > 0 {
			t.Errorf("a public image: %+v, %v, after %s", r, err, time.Since(began))
		}
		for _, name := range []string{"absent", "private", "mesh", "deleted", "warm-private", "warm-deleted", "warm-absent"} {
			for _, wait := range []time.Duration{strangersWait, 0} {
				began, gets := time.Now(), w.gets.Load()
				_, err := m.Resolve(t.Context(), name, false)
				is(t, name, err, content.ErrNotFound)
				if text := strings.Replace(err.Error(), name, "NAME", 1); text != `"NAME": not found` {
					t.Errorf("%s: %q", name, text)
				}
				if took := time.Since(began); took != wait || w.gets.Load()-gets > 1 {
					t.Errorf("%s took %s and %d requests, want %s", name, took, w.gets.Load()-gets, wait)
				}
			}
		}
		for _, name := range []string{"volume:x", "snapshot:x@1", "instance:x"} {
			_, err := m.Resolve(t.Context(), name, false)
			is(t, name, err, content.ErrNotFound)
		}
		if m.lost.Load() > 0 {
			t.Error("the origin is called lost")
		}
	})
}

// TestStrangersSpendTheirOwn: beyond their budget they cost no request, and a store that
// fails them is not called lost.
func TestStrangersSpendTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
		w.publish(t, m.signer, w.image(t, "open", content.Public(), 1))
		m.lookup(t, content.KindImage, "open")
		pause(t, 2*freshFor)
		w.away.Store(true)
		before, errs := w.gets.Load(), make(chan error)
		const strangers = 200
		for i := range strangers {
			go func() {
				_, err := m.Resolve(t.Context(), "made-up-"+string(rune('a'+i%26))+string(rune('a'+i/26)), false)
				errs <- err
			}()
		}
		for range strangers {
			is(t, "a name that was made up", <-errs, content.ErrNotFound)
		}
		if n := w.gets.Load() - before; n == 0 || n > strangersBurst {
			t.Errorf("%d requests", n)
		}
		if r, err := m.Resolve(t.Context(), "open", false); err != nil || r.Age < 2*freshFor.Seconds() {
			t.Errorf("what is known: %+v, %v", r, err)
		}
		if m.lost.Load() > 0 {
			t.Error("strangers had the origin called lost")
		}
		if _, err := m.Resolve(t.Context(), "debian", true); err == nil || m.lost.Load() != 1 {
			t.Errorf("the operator: %v, lost %d times", err, m.lost.Load())
		}
	})
}

// TestMembersAreToldOneThing on the wire: what they may not read is absent.
func TestMembersAreToldOneThing(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	w.publish(t, m.signer, w.image(t, "open", content.Public(), 1))
	w.publish(t, m.signer, w.image(t, "mesh", content.Mesh(), 2))
	w.publish(t, m.signer, w.image(t, "private", content.Farm("a"), 3))
	gone := w.publish(t, m.signer, w.image(t, "deleted", content.Farm("a"), 4))
	w.publish(t, m.signer, catalog.Change{Kind: content.KindImage, Name: "deleted", Farm: "a", Base: &gone, Delete: true})
	for _, name := range []string{"open", "mesh", "private", "deleted", "absent"} {
		m.Lookup(t.Context(), content.KindImage, name, true)
	}
	own, beta := w.signer(t, trust.RoleNode, "a").Chain.Identity(), w.signer(t, trust.RoleAdmin, "b").Chain.Identity()
	seed := w.signer(t, trust.RoleSeed, "").Chain.Identity()
	for name, may := range map[string][]trust.Identity{
		"open": {own, beta, seed, {}}, "mesh": {own, beta}, "private": {own}, "deleted": {own}, "absent": nil,
	} {
		for _, who := range []trust.Identity{own, beta, seed, {}} {
			_, err := m.Answer(t.Context(), who, Question{Kind: content.KindImage, Name: name})
			shown := false
			for _, id := range may {
				shown = shown || id == who
			}
			if shown && err != nil || !shown && (err == nil || err.Error() != `image "`+name+`": not found`) {
				t.Errorf("%s to a %s of %q: %v", name, who.Role, who.Farm, err)
			}
		}
	}
}

// TestASilentStore does not so much as hear that it is to stop, as a FIFO in a folder:
// looks end, and do not pile up.
func TestASilentStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RoleNode, "a")
		hung := &silent{Bucket: w.store, open: make(chan struct{})}
		m.origin = w.catalog(t, m.signer, hung)
		for range 3 {
			began := time.Now()
			_, err := m.Lookup(t.Context(), content.KindImage, "debian", true)
			is(t, "a look", err, content.ErrUnavailable)
			if took := time.Since(began); took > lookupTimeout+membersTimeout {
				t.Errorf("a look took %s", took)
			}
		}
		if n := hung.gets.Load(); n != 1 {
			t.Errorf("%d reads hang", n)
		}
		close(hung.open)
		synctest.Wait()
	})
}

type silent struct {
	bucket.Bucket
	open chan struct{}
	gets atomic.Int64
}

func (s *silent) Get(context.Context, string, bucket.Range) (*bucket.Object, error) {
	s.gets.Add(1)
	<-s.open
	return nil, content.ErrUnavailable
}

// TestRootsAreForgotten when the last name that stands for them ends or moves on.
func TestRootsAreForgotten(t *testing.T) {
	w := newWorld(t)
	m := w.member(t, t.TempDir(), trust.RolePublisher, "a")
	roots := func(what string, want ...byte) {
		t.Helper()
		ok := len(m.roots) == len(want)
		for _, n := range want {
			root, err := head(t, content.Mesh(), n).Root.Encode(w.codec)
			if err != nil {
				t.Fatal(err)
			}
			ok = ok && m.roots[rootKey{root.CID(), content.Mesh()}]
		}
		if !ok {
			t.Errorf("%s: %v, want %v", what, m.roots, want)
		}
	}
	commit := func(ch catalog.Change) {
		t.Helper()
		if k, ok := m.Held(ch.Kind, ch.Name); ok {
			ch.Base = &k.Record
		}
		if _, err := m.Commit(t.Context(), ch); err != nil {
			t.Fatal(err)
		}
	}
	commit(w.image(t, "one", content.Mesh(), 1))
	commit(w.image(t, "two", content.Mesh(), 1))
	roots("two names", 1)
	commit(w.image(t, "one", content.Mesh(), 2))
	roots("one moved on", 1, 2)
	m.restart(t)
	roots("after a restart", 1, 2)
	commit(w.image(t, "two", content.Mesh(), 2))
	roots("both moved on", 2)
	commit(catalog.Change{Kind: content.KindImage, Name: "one", Delete: true})
	roots("one is deleted", 2)
	before, _ := m.Held(content.KindImage, "two")
	if _, err := m.Introduced(before.Sealed); err != nil {
		t.Errorf("a record that stands is introduced: %v", err)
	}
	commit(catalog.Change{Kind: content.KindImage, Name: "two", Delete: true})
	roots("both are")
	if _, err := m.Introduced(before.Sealed); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a record that was deleted is introduced: %v", err)
	}
}

// TestRevokedSigners: what was seen of theirs before stays, what comes after is refused,
// and what is held is looked at again.
func TestRevokedSigners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.member(t, t.TempDir(), trust.RoleNode, "a")
		bad := w.signer(t, trust.RolePublisher, "b")
		w.publish(t, bad, w.image(t, "before", content.Mesh(), 1))
		m.lookup(t, content.KindImage, "before")
		pause(t, time.Minute)
		learnt := time.Now()
		pause(t, time.Minute)
		w.publish(t, bad, w.image(t, "after", content.Mesh(), 2)) // seen before this member hears of it
		m.lookup(t, content.KindImage, "after")
		w.verifier.Revoke(map[trust.PublicKey]time.Time{bad.Key.Public(): learnt})
		m.Recheck()
		if _, held := m.Held(content.KindImage, "after"); held || len(m.roots) != 1 {
			t.Errorf("held: %t, with %d roots", held, len(m.roots))
		}
		_, err := m.Lookup(t.Context(), content.KindImage, "after", false)
		is(t, "what it signed after", err, content.ErrForbidden)
		want(t, "what it signed before", m.lookup(t, content.KindImage, "before"), 1, true)
		m.restart(t)
		want(t, "and after a restart", m.lookup(t, content.KindImage, "before"), 1, true)
		if names := m.index.names("", 9); len(names) != 1 {
			t.Errorf("on disk: %q", names)
		}
	})
}
