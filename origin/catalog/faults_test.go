package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/s3"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/buckettest"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/soak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a mesh with one member and a store in memory.
type mesh struct {
	store    bucket.Bucket
	signer   trust.Signer
	verifier *trust.Verifier
}

func newMesh(t *testing.T, store bucket.Bucket) mesh {
	t.Helper()
	key := trust.NewPrivateKey()
	meshKey := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: meshKey}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "a"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return mesh{store, trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(meshKey.Public())}
}

func (m mesh) open(t testing.TB) *Catalog {
	t.Helper()
	c, err := New(Config{Bucket: m.store, Verifier: m.verifier, Signer: m.signer})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func commit(t testing.TB, c *Catalog, ch Change) Record {
	t.Helper()
	r, err := c.Commit(t.Context(), ch)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestALostReplyToEachWriteUnderLoad has the reply to every single write lost,
// while many holders, each of its own volume, write as fast as they can: none is
// ever told that another stands there.
func TestALostReplyToEachWriteUnderLoad(t *testing.T) {
	for name, fault := range map[string]func() mem.Fault{
		"applied": func() mem.Fault { return mem.Fault{Err: bucket.ErrUnknown, Applied: true} },
		"either":  func() mem.Fault { return mem.Fault{Err: bucket.ErrUnknown, Applied: rand.IntN(4) > 0} },
		// A store or a layer before it that sends a write again answers so.
		"applied and refused": func() mem.Fault { return mem.Fault{Err: bucket.ErrPrecondition, Applied: true} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
				if c.Op == mem.Put {
					return fault()
				}
				return mem.Fault{}
			}}))
			const holders = 8
			writes := 10 * soak.Rounds(20)
			var wg sync.WaitGroup
			for h := range holders {
				c := m.open(t)
				wg.Go(func() {
					var base *Record
					for i := range writes {
						r, err := c.Commit(t.Context(), change(fmt.Sprintf("v%d", h), fmt.Sprint(i), base))
						if err != nil && strings.Contains(err.Error(), bucket.ErrUnknown.Error()) && name == "either" {
							continue // five in a row did not arrive
						}
						if err != nil || r.Version <= version(base) {
							t.Errorf("write %d of v%d: version %d after %d, %v", i, h, r.Version, version(base), err)
							return
						}
						base = &r
					}
				})
			}
			wg.Wait()
		})
	}
}

func version(r *Record) uint64 {
	if r == nil {
		return 0
	}
	return r.Version
}

// TestVersionsOnlyRise lets writers create, replace and delete one name at will,
// with replies lost, and readers watch: no version is seen twice with different
// content, and none goes down.
func TestVersionsOnlyRise(t *testing.T) {
	m := newMesh(t, mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if c.Op == mem.Put && rand.IntN(2) == 0 {
			return mem.Fault{Err: bucket.ErrUnknown, Applied: rand.IntN(2) == 0}
		}
		return mem.Fault{}
	}}))
	var mu sync.Mutex
	commits := map[uint64]trust.Commit{} // by version
	see := func(r Record) {
		mu.Lock()
		defer mu.Unlock()
		if old, ok := commits[r.Version]; ok && old != r.Commit {
			t.Errorf("version %d was written twice", r.Version)
		}
		commits[r.Version] = r.Commit
	}
	var wg sync.WaitGroup
	for w := range 6 {
		c := m.open(t)
		wg.Go(func() {
			last := uint64(0)
			for i := range 20 * soak.Rounds(20) {
				r, err := c.Get(t.Context(), content.KindVolume, "v")
				if err != nil && !errors.Is(err, content.ErrNotFound) {
					t.Error(err)
					return
				}
				if err == nil {
					if see(r); r.Version < last {
						t.Errorf("version %d after %d", r.Version, last)
					}
					last = r.Version
				}
				ch := change("v", fmt.Sprint(w, i), &r)
				if ch.Delete = i%5 == 4; ch.Delete {
					ch.Body = nil
				}
				if err != nil || r.Tombstone {
					ch.Base, ch.Delete = nil, false
				}
				written, err := c.Commit(t.Context(), ch)
				switch {
				case err == nil:
					see(written)
				case !errors.Is(err, content.ErrConflict) && !errors.Is(err, content.ErrExists) && !errors.Is(err, bucket.ErrUnknown):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestAnAnswerThatCannotBeReadBackIsUnknown loses the reply and the store with it.
func TestAnAnswerThatCannotBeReadBackIsUnknown(t *testing.T) {
	away := false
	m := newMesh(t, mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
		if c.Op == mem.Put {
			away = true
			return mem.Fault{Err: bucket.ErrUnknown, Applied: true}
		}
		if away {
			return mem.Fault{Err: content.ErrUnavailable}
		}
		return mem.Fault{}
	}}))
	_, err := m.open(t).Commit(t.Context(), change("v", "1", nil))
	if !errors.Is(err, bucket.ErrUnknown) || errors.Is(err, content.ErrExists) || errors.Is(err, content.ErrConflict) {
		t.Errorf("%v, want ErrUnknown alone", err)
	}
}

// TestSubmit stores what members without an origin have sealed.
func TestSubmit(t *testing.T) {
	m := newMesh(t, mem.New(t, mem.Config{}))
	helper := m.open(t)
	seal := func(name string, version uint64) []byte {
		e := trust.Envelope{Kind: content.KindVolume, Name: name, Farm: "a", Version: version, SignedAt: time.Now(), Commit: trust.NewCommit(), Body: []byte("x")}
		b, err := m.signer.Seal(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := seal("v", 1)
	first, err := helper.Submit(t.Context(), one, "")
	if err != nil || first.Version != 1 {
		t.Fatalf("version %d, %v", first.Version, err)
	}
	for i, c := range []*Catalog{helper, m.open(t)} { // its reply was lost on the way to the member
		if again, err := c.Submit(t.Context(), one, ""); err != nil || again.ETag != first.ETag {
			t.Errorf("sent again to %d: %+v, %v", i, again, err)
		}
	}
	for name, c := range map[string]struct {
		sealed []byte
		etag   string
		want   error
	}{
		"a name that is taken":  {seal("v", 1), "", content.ErrExists},
		"a stale base":          {seal("v", 2), `"stale"`, content.ErrConflict},
		"the same version":      {seal("v", 1), first.ETag, content.ErrInvalid},
		"a version left out":    {seal("v", 3), first.ETag, content.ErrInvalid},
		"a version of a flood":  {seal("w", 1<<63), "", content.ErrInvalid},
		"a name that is a path": {seal("../../grange.json", 1), "", content.ErrInvalid},
		"garbage":               {[]byte("x"), "", content.ErrCorrupt},
	} {
		if _, err := m.open(t).Submit(t.Context(), c.sealed, c.etag); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if r, err := helper.Submit(t.Context(), seal("v", 2), first.ETag); err != nil || r.Version != 2 {
		t.Errorf("version %d, %v", r.Version, err)
	}
}

// TestAFarmsRecordIsItsOwn: a member of another farm neither replaces nor deletes
// it, by whatever way.
func TestAFarmsRecordIsItsOwn(t *testing.T) {
	m := newMesh(t, mem.New(t, mem.Config{}))
	key := trust.NewPrivateKey()
	chain, err := m.signer.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleNode, Farm: "b"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, stranger := m.open(t), mesh{m.store, trust.Signer{Key: key, Chain: chain}, m.verifier}
	first := commit(t, c, change("v", "1", nil))
	for _, deleted := range []bool{false, true} {
		ch := Change{Kind: content.KindVolume, Name: "v", Farm: "b", Base: &first, Delete: deleted}
		if _, err := stranger.open(t).Commit(t.Context(), ch); !errors.Is(err, content.ErrForbidden) {
			t.Errorf("committed, deleted %t: %v, want ErrForbidden", deleted, err)
		}
		e := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Farm: ch.Farm, Version: 2, SignedAt: time.Now(), Commit: trust.NewCommit(), Tombstone: deleted}
		sealed, err := stranger.signer.Seal(e)
		if err != nil {
			t.Fatal(err)
		}
		for name, helper := range map[string]*Catalog{"who knows": c, "who does not": m.open(t)} {
			if _, err := helper.Submit(t.Context(), sealed, first.ETag); !errors.Is(err, content.ErrForbidden) {
				t.Errorf("submitted to one %s, deleted %t: %v, want ErrForbidden", name, deleted, err)
			}
		}
	}
	commit(t, c, Change{Kind: content.KindVolume, Name: "v", Farm: "a", Base: &first, Delete: true})
	if r := commit(t, stranger.open(t), Change{Kind: content.KindVolume, Name: "v", Farm: "b"}); r.Version != 3 {
		t.Errorf("version %d of a name that was deleted, want 3", r.Version)
	}
}

// TestAListOfTenThousandNames counts requests: 10 pages of names, and one get for
// each record that changed.
func TestAListOfTenThousandNames(t *testing.T) {
	const names = 10_000
	store := mem.New(t, mem.Config{})
	m := newMesh(t, store)
	c := m.open(t)
	known := map[string]Record{}
	for i := range names {
		r := commit(t, c, change(fmt.Sprintf("v%05d", i), "1", nil))
		known[r.Name] = r
	}
	if n := store.Count(mem.Get); n != 0 {
		t.Errorf("%d gets for names that nobody had", n)
	}
	c.cfg.Recall = func(_ content.Kind, name string) (Record, bool) { r, ok := known[name]; return r, ok }
	gets, lists := store.Count(mem.Get), store.Count(mem.List)
	listed := 0
	for r, err := range c.List(t.Context(), content.KindVolume, "", "") {
		if err != nil || r.Name != fmt.Sprintf("v%05d", listed) {
			t.Fatalf("%d: %q, %v", listed, r.Name, err)
		}
		listed++
	}
	gets, lists = store.Count(mem.Get)-gets, store.Count(mem.List)-lists
	if listed != names || gets != 0 || lists != names/bucket.PageSize {
		t.Errorf("%d names took %d lists and %d gets", listed, lists, gets)
	}
}

// TestAListGoesOnPastABadRecord has a foreign object among the records.
func TestAListGoesOnPastABadRecord(t *testing.T) {
	store := mem.New(t, mem.Config{})
	c := newMesh(t, store).open(t)
	for _, name := range []string{"a", "c"} {
		commit(t, c, change(name, "1", nil))
	}
	if _, err := store.Put(t.Context(), "records/volume/b", bucket.Bytes([]byte("garbage")), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r, err := range c.List(t.Context(), content.KindVolume, "", "") {
		got = append(got, fmt.Sprintf("%s:%t", r.Name, errors.Is(err, content.ErrCorrupt)))
	}
	if text := strings.Join(got, " "); text != "a:false b:true c:false" {
		t.Errorf("listed %s", text)
	}
}

// TestADamagedRecordIsLeft: nothing is written over what can't be read, and the error says which object is damaged.
func TestADamagedRecordIsLeft(t *testing.T) {
	store := mem.New(t, mem.Config{})
	c := newMesh(t, store).open(t)
	r := commit(t, c, change("v", "1", nil))
	for _, key := range []string{"records/volume/v", "records/volume/w"} {
		if _, err := store.Put(t.Context(), key, bucket.Bytes([]byte("garbage")), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	remove := change("v", "", &r)
	remove.Delete, remove.Body = true, nil
	for key, ch := range map[string]Change{"records/volume/v": remove, "records/volume/w": change("w", "1", nil)} {
		if _, err := c.Commit(t.Context(), ch); !errors.Is(err, content.ErrCorrupt) || errors.Is(err, bucket.ErrUnknown) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestWhatMayNotBeCommitted(t *testing.T) {
	m := newMesh(t, mem.New(t, mem.Config{}))
	c := m.open(t)
	r := commit(t, c, change("v", "1", nil))
	readOnly := mesh{m.store, trust.Signer{}, m.verifier}.open(t)
	if _, err := readOnly.Commit(t.Context(), change("w", "1", nil)); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("without a signer: %v, want ErrForbidden", err)
	}
	unread := r
	unread.ETag = ""
	for name, x := range map[string]struct {
		change Change
		want   error
	}{
		"a bad name":               {change("a/b", "1", nil), content.ErrInvalid},
		"a deletion of nothing":    {Change{Kind: content.KindVolume, Name: "x", Farm: "a", Delete: true}, content.ErrInvalid},
		"a base of another name":   {change("w", "1", &r), content.ErrInvalid},
		"a base from hearsay":      {change("v", "2", &unread), content.ErrConflict},
		"a body over the limit":    {change("w", strings.Repeat("x", content.RecordSizeMax), nil), content.ErrInvalid},
		"a volume of another farm": {Change{Kind: content.KindVolume, Name: "w", Farm: "b", Body: []byte("x")}, content.ErrForbidden},
	} {
		if _, err := c.Commit(t.Context(), x.change); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", name, err, x.want)
		}
	}
}

// TestClaimsWithLostReplies lets two meshes claim one bucket: one gets it, and is
// told so.
func TestClaimsWithLostReplies(t *testing.T) {
	for range soak.Rounds(50) {
		store := mem.New(t, mem.Config{Fault: func(c mem.Call) mem.Fault {
			if c.Op == mem.Put {
				return mem.Fault{Err: bucket.ErrUnknown, Applied: rand.IntN(2) == 0}
			}
			return mem.Fault{}
		}})
		keys := []trust.PublicKey{trust.NewPrivateKey().Public(), trust.NewPrivateKey().Public()}
		errs := make([]error, len(keys))
		var wg sync.WaitGroup
		for i, k := range keys {
			wg.Go(func() { errs[i] = ClaimMesh(t.Context(), store, k) })
		}
		wg.Wait()
		for i, err := range errs {
			holds := CheckMesh(t.Context(), store, keys[i]) == nil
			lost := errors.Is(err, bucket.ErrUnknown) // five in a row
			if !lost && holds != (err == nil) || !lost && err != nil && !errors.Is(err, content.ErrConflict) {
				t.Errorf("mesh %d holds it: %t, was told %v", i, holds, err)
			}
		}
	}
}

func TestOtherMeshObjects(t *testing.T) {
	key := trust.NewPrivateKey().Public()
	for text, want := range map[string]error{
		`{}`: content.ErrConflict, `garbage`: content.ErrCorrupt, strings.Repeat(" ", 2<<10): content.ErrCorrupt,
		fmt.Sprintf(`{"mesh":%q,"format":2}`, key): content.ErrUnavailable, fmt.Sprintf(`{"mesh":%q,"format":1,"more":1}`, key): nil,
	} {
		store := mem.New(t, mem.Config{})
		if _, err := store.Put(t.Context(), content.KeyMesh, bucket.Bytes([]byte(text)), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
		if err := ClaimMesh(t.Context(), store, key); !errors.Is(err, want) || errors.Is(err, bucket.ErrUnknown) {
			t.Errorf("%.40s: %v, want %v", text, err, want)
		}
	}
}

// TestOnARealStore runs creators and a chain of versions on S3.
func TestOnARealStore(t *testing.T) {
	server := buckettest.StartS3(t)
	server.Setenv(t)
	l, err := s3.ParseURL(server.URL("mesh"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s3.Open(t.Context(), s3.Config{Location: l})
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, bucket.Retry(b, bucket.RetryConfig{}))
	if err := ClaimMesh(t.Context(), m.store, m.verifier.Mesh()); err != nil {
		t.Fatal(err)
	}
	for round := range soak.Rounds(20) {
		won := make(chan *Record, 8)
		for i := range cap(won) {
			c := m.open(t)
			go func() {
				r, err := c.Commit(t.Context(), change(fmt.Sprintf("v%d", round), fmt.Sprint(i), nil))
				if err != nil && !errors.Is(err, content.ErrExists) {
					t.Errorf("a loser was told: %v", err)
				}
				if err != nil {
					won <- nil
					return
				}
				won <- &r
			}()
		}
		var base *Record
		for range cap(won) {
			if r := <-won; r != nil && base != nil {
				t.Fatal("two creators won")
			} else if r != nil {
				base = r
			}
		}
		c := m.open(t)
		next := commit(t, c, change(base.Name, "next", base))
		gone := commit(t, c, Change{Kind: base.Kind, Name: base.Name, Farm: "a", Base: &next, Delete: true})
		if again := commit(t, c, change(base.Name, "again", nil)); again.Version != 4 || gone.Version != 3 {
			t.Errorf("versions %d, %d", gone.Version, again.Version)
		}
	}
	n := 0
	for r, err := range m.open(t).List(t.Context(), content.KindVolume, "", "") {
		if n++; err != nil || r.Version != 4 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if n != soak.Rounds(20) {
		t.Errorf("%d names are listed", n)
	}
}
