package index

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origin has packs of one chunk, each with an index object of its own.
type origin struct {
	*mem.Bucket
	verifier *trust.Verifier
	signer   trust.Signer
	packs    map[pack.ID]content.CID
	sizes    map[pack.ID]int64

	mu    sync.Mutex // guards what follows
	calls int
	each  func(call int, c mem.Call) mem.Fault // nil for none
}

func newOrigin(t *testing.T, packs int) *origin {
	t.Helper()
	root, key := trust.NewPrivateKey(), trust.NewPrivateKey()
	chain, err := trust.Signer{Key: root}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: "a"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{verifier: trust.NewVerifier(root.Public()), signer: trust.Signer{Key: key, Chain: chain}, packs: map[pack.ID]content.CID{}, sizes: map[pack.ID]int64{}}
	o.Bucket = mem.New(t, mem.Config{MayReadDeleted: true, Fault: func(c mem.Call) mem.Fault {
		o.mu.Lock()
		call, each := o.calls, o.each
		o.calls++
		o.mu.Unlock()
		if each == nil {
			return mem.Fault{}
		}
		return each(call, c)
	}})
	for i := range packs {
		id := newID(t)
		w := pack.NewWriter(id, nil)
		b := fmt.Appendf(nil, "chunk %d", i)
		o.packs[id] = content.Sum(b)
		w.Add(pack.RoleChunk, o.packs[id], len(b), pack.CodecRaw, b)
		s, err := w.Seal(pack.SignedBy(o.signer, content.Mesh(), time.Now))
		if err == nil {
			_, err = pack.Store(t.Context(), o, s)
		}
		if err == nil {
			err = Store(t.Context(), o, newID(t), []Pack{{ID: id, Entries: s.Directory, Signature: s.Signature}})
		}
		if err != nil {
			t.Fatal(err)
		}
		o.sizes[id] = int64(len(s.Bytes))
	}
	return o
}

func newID(t *testing.T) pack.ID {
	t.Helper()
	id, err := pack.NewID(content.Mesh(), time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// meet sets what each call meets, and begins to count them.
func (o *origin) meet(each func(call int, c mem.Call) mem.Fault) (calls int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	calls, o.calls, o.each = o.calls, 0, each
	return calls
}

func (o *origin) merge(ctx context.Context) (Merged, error) {
	return Merge(ctx, o, content.Mesh(), func(id pack.ID) (int64, bool) {
		size, ok := o.sizes[id]
		return size, ok
	}, func() pack.ID { return pack.FreshID(content.Mesh(), time.Now()) })
}

func (o *origin) indexes() []string { return o.Keys("index/") }

// importer loads the index, and fails unless it knows what is there and nothing else.
func (o *origin) importer(t *testing.T, dir string) {
	t.Helper()
	x, err := Load(t.Context(), Config{Bucket: o, Scopes: []content.Scope{content.Mesh()}, Verifier: o.verifier, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for id, chunk := range o.packs {
		_, there := o.sizes[id]
		if at, ok := x.Locate(t.Context(), chunk); ok != there || ok && at.Pack != id {
			t.Fatalf("the chunk of pack %s: %v %t, want %t", id, at, ok, there)
		}
	}
}

// lose takes away some packs, as a collection does.
func (o *origin) lose(t *testing.T, n int) {
	t.Helper()
	for id := range o.sizes {
		if n--; n < 0 {
			return
		}
		delete(o.sizes, id)
		if err := o.Delete(t.Context(), id.Key()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIndexObjectsAreMerged(t *testing.T) {
	o, dir := newOrigin(t, smallMax+3), t.TempDir()
	o.importer(t, dir)
	gone, stub := newID(t), newID(t)
	o.sizes[stub] = pack.SizeMin
	var live pack.ID
	for live = range o.packs {
		break
	}
	for _, id := range []pack.ID{gone, live, stub} {
		if err := Suspect(t.Context(), o, id); err != nil {
			t.Fatal(err)
		}
	}
	objects := o.indexes()
	o.Corrupt(objects[0], func(b []byte) { b[len(b)-1] ^= 1 })
	out, err := o.merge(t.Context())
	if err != nil || out.Written != 1 || out.Deleted != smallMax+3 || len(o.indexes()) != 2 { // and the mark on what is there
		t.Fatalf("%+v, %v; %v", out, err, o.indexes())
	}
	delete(o.sizes, stub)
	o.importer(t, dir)
	before := o.Count(mem.Get)
	o.importer(t, t.TempDir())
	if n := o.Count(mem.Get) - before; n > 5 { // the index object, and what the damaged one and the mark are of
		t.Fatalf("%d reads without a cache", n)
	}
	before = o.Count(mem.Get)
	o.importer(t, dir)
	if o.Count(mem.Get) > before+1 { // the chunk of the pack that is suspect
		t.Fatalf("%d reads with a cache", o.Count(mem.Get)-before)
	}
	if out, err = o.merge(t.Context()); err != nil || out.Written+out.Deleted > 0 {
		t.Fatalf("again: %+v, %v", out, err)
	}
	o.lose(t, smallMax)
	if out, err = o.merge(t.Context()); err != nil || out.Written != 1 || out.Deleted != 1 || out.Freed < 0 {
		t.Fatalf("of packs that are gone: %+v, %v", out, err)
	}
	o.importer(t, dir)
	o.lose(t, len(o.sizes))
	if out, err = o.merge(t.Context()); err != nil || out.Written != 0 || out.Deleted != 1 {
		t.Fatalf("of none that is there: %+v, %v", out, err)
	}
}

func TestAFewIndexObjectsStay(t *testing.T) {
	o := newOrigin(t, smallMax)
	if out, err := o.merge(t.Context()); err != nil || out.Written+out.Deleted > 0 || len(o.indexes()) != smallMax {
		t.Fatalf("%+v, %v", out, err)
	}
}

// What a later version has written, of the same form or of another, keeps Merge from doing anything.
func TestANewerIndexIsLeftAlone(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"the same form": func(b []byte) []byte {
			b = slices.Concat(b[content.CIDSize:])
			b[slices.Index(b, '/')+1]++
			sum := content.Sum(b)
			return slices.Concat(sum[:], b)
		},
		"another": func(b []byte) []byte {
			return append(make([]byte, 32), "\xa3\x65magic\x6fgrange-index/31 and whatever"...)
		},
	} {
		o := newOrigin(t, smallMax+3)
		keys := o.indexes()
		b, _, err := bucket.ReadAll(t.Context(), o, keys[3], ObjectSizeMax)
		if err == nil {
			_, err = o.Put(t.Context(), string(content.KeyIndexes)+string(newID(t))+indexSuffix, bucket.Bytes(change(b)), bucket.IfAbsent())
		}
		if err != nil {
			t.Fatal(err)
		}
		want := o.indexes()
		if out, err := o.merge(t.Context()); !errors.Is(err, content.ErrUnknown) || out.Deleted+out.Written > 0 || !slices.Equal(o.indexes(), want) {
			t.Fatalf("%s: %+v, %v", name, out, err)
		}
		o.importer(t, t.TempDir())
	}
}

// Whichever call fails, importers know all that is there, and a merge that is begun again ends.
func TestAMergeThatIsKilled(t *testing.T) {
	for _, fault := range []mem.Fault{{Err: content.ErrUnavailable}, {Err: bucket.ErrUnknown, Applied: true}} {
		for at := 0; ; at++ {
			o := newOrigin(t, smallMax+2)
			o.lose(t, 3)
			o.meet(func(call int, _ mem.Call) mem.Fault {
				if call >= at {
					return fault
				}
				return mem.Fault{}
			})
			_, err := o.merge(t.Context())
			o.meet(nil)
			o.importer(t, t.TempDir())
			if _, again := o.merge(t.Context()); again != nil {
				t.Fatal(again)
			}
			o.importer(t, t.TempDir())
			if err == nil {
				break
			}
		}
	}
}

// An importer that has listed index objects finds some gone, at whichever of its requests they go.
func TestAnImporterBesideAMerge(t *testing.T) {
	for at, calls := 0, 1; at < calls; at++ {
		o := newOrigin(t, smallMax+2)
		o.lose(t, 3)
		o.meet(func(call int, _ mem.Call) mem.Fault {
			if call == at {
				if _, err := o.merge(t.Context()); err != nil {
					t.Error(err)
				}
			}
			return mem.Fault{}
		})
		dir := t.TempDir()
		o.importer(t, dir)
		n := o.meet(nil)
		calls = min(max(calls, n), 60)
		o.importer(t, dir)
	}
}
