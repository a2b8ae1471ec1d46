package records

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/node/fetch/plan"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fataler is what a test and a property have in common.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Context() context.Context
}

// world is a mesh and its bucket.
type world struct {
	founder  trust.Signer
	verifier *trust.Verifier
	store    *mem.Bucket
	codec    *content.Codec
	away     atomic.Bool // the store does not answer
	gets     atomic.Int64
	ahead    atomic.Int64 // by how much its clock is
	later    atomic.Int64 // by how much the store's own clock is
	fault    atomic.Pointer[func(mem.Call) mem.Fault]
}

func (w *world) clock() time.Time { return time.Now().Add(time.Duration(w.later.Load())) }

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func newWorld(t fataler) *world {
	t.Helper()
	key := trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "root"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{founder: trust.Signer{Key: key, Chain: chain}, verifier: trust.NewVerifier(mesh.Public()), codec: content.NewCodec()}
	w.store = mem.New(t, mem.Config{Now: w.clock, MayReadDeleted: true, Fault: func(c mem.Call) mem.Fault {
		if c.Op == mem.Get {
			w.gets.Add(1)
		}
		if w.away.Load() {
			return mem.Fault{Err: content.ErrUnavailable}
		}
		if f := w.fault.Load(); f != nil {
			return (*f)(c)
		}
		return mem.Fault{}
	}})
	s, _ := stored(t)
	if _, err := w.store.Put(t.Context(), s.ID.Key(), bucket.Bytes(s.Bytes), bucket.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	return w
}

// stored is the pack that has the manifest of all heads, and where that lies.
func stored(t fataler) (pack.Sealed, pack.Extent) {
	t.Helper()
	const id = pack.ID("public/2026112022-000102030405060708090a0b0c0d0e0f")
	m, err := pack.Manifest{Root: content.Sum([]byte("root")), Packs: []pack.PackRefs{{ID: id, Refs: 1, Bytes: 1}}}.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	w := pack.NewWriter(id, nil)
	at := w.Add(pack.RoleManifest, m.CID(), len(m.Bytes()), pack.CodecRaw, m.Bytes())
	s, err := w.Seal(nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, pack.Extent{CID: m.CID(), Location: at}
}

func (w *world) signer(t fataler, role trust.Role, farm string) trust.Signer {
	t.Helper()
	key := trust.NewPrivateKey()
	chain, err := w.founder.Issue(trust.Identity{Key: key.Public(), Role: role, Farm: farm}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return trust.Signer{Key: key, Chain: chain}
}

func (w *world) catalog(t fataler, s trust.Signer, b bucket.Bucket) *catalog.Catalog {
	t.Helper()
	c, err := catalog.New(catalog.Config{Bucket: b, Verifier: w.verifier, Signer: s})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// member is a node's names without the node.
type member struct {
	*Names
	w      *world
	signer trust.Signer
	origin *catalog.Catalog // nil for none
	farm   *neighbours      // nil for none
	// asked answer in turn; submit writes.
	asked  []func(context.Context, Question) (Answer, error)
	submit func(Submission) (Answer, error)
	lost   atomic.Int64
	asks   atomic.Int64
	roots  map[rootKey]bool
	dir    string
}

func (w *world) member(t fataler, dir string, role trust.Role, farm string) *member {
	t.Helper()
	return w.neighbour(t, nil, dir, role, farm)
}

// neighbour is a member among others of its farm.
func (w *world) neighbour(t fataler, near *neighbours, dir string, role trust.Role, farm string) *member {
	t.Helper()
	m := &member{w: w, signer: w.signer(t, role, farm), dir: dir, farm: near}
	var err error
	m.origin, err = catalog.New(catalog.Config{Bucket: w.store, Verifier: w.verifier, Signer: m.signer, Now: w.now, Recall: func(kind content.Kind, name string) (catalog.Record, bool) { return m.Recall(kind, name) }})
	if err != nil {
		t.Fatal(err)
	}
	m.restart(t)
	return m
}

func (m *member) self() trust.Identity { return m.signer.Chain.Identity() }

// restart begins anew with what is on disk.
func (m *member) restart(t fataler) {
	t.Helper()
	m.roots = map[rootKey]bool{}
	reader := func() *catalog.Catalog { return m.origin }
	if m.Names != nil {
		m.Close()
	}
	var err error
	var think func(func(*plan.Member))
	if m.farm != nil {
		think = m.farm.mind(m)
	}
	m.Names, err = New(Config{
		Think: think, AskLead: func(ctx context.Context, p plan.Peer, q Question) (Answer, error) { return m.farm.ask(ctx, m, p, q) },
		Dir: filepath.Join(m.dir, "records"), Reader: reader, Writer: reader, Lost: func(error) { m.lost.Add(1) },
		Verifier: m.w.verifier, Signer: m.signer,
		Ask: func(ctx context.Context, q Question, limit int) (out []Answer) {
			m.asks.Add(1)
			for _, ask := range m.asked {
				if a, err := ask(ctx, q); err == nil && len(out) < limit {
					out = append(out, a)
				}
			}
			return out
		},
		Submit: func(_ context.Context, s Submission) (Answer, error) {
			if m.submit == nil {
				return Answer{}, content.ErrUnavailable
			}
			return m.submit(s)
		},
		Learn: func(k Known) {
			if k.Head != nil {
				m.roots[rootKey{k.Root, k.Scope}] = true
			}
		},
		Forget: func(root content.CID, scope content.Scope) { delete(m.roots, rootKey{root, scope}) },
		Codec:  m.w.codec, Now: m.w.now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// asks has m ask another one.
func (m *member) asksOf(others ...*member) {
	for _, o := range others {
		m.asked = append(m.asked, func(ctx context.Context, q Question) (Answer, error) { return o.Answer(ctx, m.self(), q) })
	}
}

// says has m get one answer whatever it asks.
func (m *member) says(a Answer) {
	m.asked = append(m.asked, func(context.Context, Question) (Answer, error) { return a, nil })
}

// head returns a head of a root that n tells from others.
func head(t fataler, scope content.Scope, n byte) pack.Head {
	t.Helper()
	_, manifest := stored(t)
	id := manifest.Pack
	at := func(name string, offset uint32) pack.Extent {
		return pack.Extent{CID: content.Sum([]byte{n, name[0]}), Location: pack.Location{Pack: id, Offset: offset, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}}
	}
	node := at("node", 1<<24)
	root := content.Root{Size: 1 << 30, ChunkSize: content.ChunkSizeDefault, Map: node.CID}
	return pack.Head{Root: root, Scope: scope, Node: node, Page: at("page", 1<<24+1<<12), Manifest: manifest}
}

// image is the record of an image, by which n tells it from others.
func (w *world) image(t fataler, name string, scope content.Scope, n byte) catalog.Change {
	t.Helper()
	body, err := catalog.Image{Head: head(t, scope, n), Lineage: []content.CID{}}.Encode(w.codec)
	if err != nil {
		t.Fatal(err)
	}
	return catalog.Change{Kind: content.KindImage, Name: name, Farm: scope.Farm(), Body: body, Since: w.clock()}
}

// volume is the record of a volume.
func (w *world) volume(t fataler, name, farm string, n byte) catalog.Change {
	t.Helper()
	h := head(t, content.Farm(farm), n)
	body, err := catalog.Volume{ID: content.VolumeID{n}, Policy: catalog.PolicyLocal, Size: 1 << 30, Folded: catalog.Folded{Head: &h}, State: catalog.Attached}.Encode(w.codec)
	if err != nil {
		t.Fatal(err)
	}
	return catalog.Change{Kind: content.KindVolume, Name: name, Farm: farm, Body: body}
}

// publish writes a record over the one that is there.
func (w *world) publish(t fataler, s trust.Signer, ch catalog.Change) catalog.Record {
	t.Helper()
	c := w.catalog(t, s, w.store)
	if old, err := c.Get(t.Context(), ch.Kind, ch.Name); err == nil && !old.Tombstone {
		ch.Base = &old
	}
	r, err := c.Commit(t.Context(), ch)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// put writes a record past all conditions, as who has the bucket's credentials can.
func (w *world) put(t fataler, kind content.Kind, name string, sealed []byte) {
	t.Helper()
	if _, err := w.store.Put(t.Context(), "records/"+key(kind, name), bucket.Bytes(sealed), bucket.Condition{}); err != nil {
		t.Fatal(err)
	}
}

// sealed signs a change as a version that was never written.
func (w *world) sealed(t fataler, s trust.Signer, ch catalog.Change, version uint64) Known {
	t.Helper()
	e := trust.Envelope{Kind: ch.Kind, Name: ch.Name, Version: version, SignedAt: time.Now(), Farm: ch.Farm, Tombstone: ch.Delete, Body: ch.Body, Commit: trust.NewCommit()}
	b, err := s.Seal(e)
	if err != nil {
		t.Fatal(err)
	}
	return Known{Record: catalog.Record{Envelope: e, Sealed: b}}
}

// vouched is an answer with a statement that somebody signed.
func vouched(t fataler, by trust.Signer, r catalog.Record, seen time.Time) Answer {
	t.Helper()
	st, err := by.State(trust.Statement{Kind: r.Kind, Name: r.Name, Version: r.Version, Commit: r.Commit, SeenAt: seen})
	if err != nil {
		t.Fatal(err)
	}
	return Answer{Sealed: r.Sealed, Statement: st, ETag: r.ETag, Who: by.Chain.Identity()}
}

// lookup asks for what the name stands for now.
func (m *member) lookup(t fataler, kind content.Kind, name string) Known {
	t.Helper()
	k, err := m.Lookup(t.Context(), kind, name, true)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// want checks version and standing.
func want(t fataler, what string, k Known, version uint64, confirmed bool) {
	t.Helper()
	if k.Version != version || k.Confirmed != confirmed {
		t.Errorf("%s: version %d, confirmed %t (%s), want %d, %t", what, k.Version, k.Confirmed, k.Doubt, version, confirmed)
	}
}

// is reports an error that is of another kind.
func is(t fataler, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func tempDir(t *testing.T, n int) string { return filepath.Join(t.TempDir(), fmt.Sprint(n)) }

// pause lets time pass, in a bubble.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	<-time.After(d)
}
