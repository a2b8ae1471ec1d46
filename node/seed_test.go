package node

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/node/seed"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
)

// disk is a file to import that does not compress.
func disk(t *testing.T) (path string, raw []byte) {
	t.Helper()
	path, raw = filepath.Join(t.TempDir(), "disk"), make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(raw)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, raw
}

// done waits for an operation of a node, and returns what it failed with.
func (n *Node) done(t *testing.T, v operations.View, err error) string {
	t.Helper()
	if err == nil {
		v, err = n.Operations.Wait(t.Context(), v.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v.Error
}

// TestASeedIsANodeWithFewerServices: it opens no origin and has no volumes, publishes
// nothing, has public content of members, serves it when they are gone, and has nothing of
// the mesh's own.
func TestASeedIsANodeWithFewerServices(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	var stop func()
	m.first, stop = m.start(t.TempDir(), "first", "")
	source, raw := disk(t)
	for name, scope := range map[string]content.Scope{"open": content.Public(), "tied": content.Mesh()} {
		v, err := m.first.Images.Import(t.Context(), name, images.ImportRequest{Options: convert.Options{Path: source, Format: "raw"}, Scope: scope})
		if why := m.first.done(t, v, err); why != "" {
			t.Fatal(why)
		}
	}
	token := m.token(trust.RoleSeed)
	opened := m.opened.Load()
	seed, _ := m.startAs(trust.RoleSeed, t.TempDir(), "seed", token)
	if m.opened.Load() != opened || seed.Status().Origin.State != originNone {
		t.Errorf("a seed has opened an origin: %+v", seed.Status().Origin)
	}
	m.await("connected", func() bool { return m.first.linked(seed) && seed.Status().Ready })
	if s := seed.Status(); !s.Ready || seed.Volumes != nil || s.Disks.Served || s.Disks.Detail == "" || len(seed.Collectors()) == 0 {
		t.Errorf("%+v", s)
	}
	v, err := seed.Images.Warm("open")
	if why := seed.done(t, v, err); why != "" {
		t.Fatal(why)
	}
	if v, err = seed.Images.Warm("tied"); err == nil && seed.done(t, v, err) == "" {
		t.Error("a seed has what is the mesh's own")
	}
	stop()
	for i := range len(raw) / content.ChunkSizeDefault {
		want := content.Seal(raw[i*content.ChunkSizeDefault:][:content.ChunkSizeDefault])
		if got, err := seed.Images.PublicBlock(want.CID()); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("block %d: %v", i, err)
		}
	}
	if _, err := seed.Images.Import(t.Context(), "new", images.ImportRequest{Options: convert.Options{Path: source}}); !errors.Is(err, content.ErrForbidden) {
		t.Errorf("an import: %v", err)
	}
	if _, err := seed.Images.Tag(t.Context(), "open", "stable"); err == nil {
		t.Error("a seed has set a tag")
	}
	if v, err = seed.Images.Verify("open"); err == nil && seed.done(t, v, err) == "" {
		t.Error("a seed has verified what it can't reach")
	}
}

// publishDisks imports the same disk under names, for all the world.
func (m *mesh) publishDisks(names ...string) (raw [][]byte) {
	m.t.Helper()
	for i, name := range names {
		source, b := disk(m.t)
		for at := range b { // another one each
			b[at] ^= byte(i)
		}
		if err := os.WriteFile(source, b, 0o600); err != nil {
			m.t.Fatal(err)
		}
		v, err := m.first.Images.Import(m.t.Context(), name, images.ImportRequest{Options: convert.Options{Path: source, Format: "raw"}, Scope: content.Public()})
		if why := m.first.done(m.t, v, err); why != "" {
			m.t.Fatal(why)
		}
		raw = append(raw, b)
	}
	return raw
}

// warm has a node fetch an image, and returns why it could not.
func (n *Node) warm(t *testing.T, name string) string {
	t.Helper()
	v, err := n.Images.Warm(name)
	if err != nil {
		return err.Error()
	}
	return n.done(t, v, nil)
}

// TestASeedHoldsNothingForOthers: members ask it to bring in what it was not told to hold,
// show it the record, follow its bitmap, and have it relay; its cache stays as it was.
func TestASeedHoldsNothingForOthers(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	m.publishDisks("held", "other")
	holds, _ := m.startAs(trust.RoleSeed, t.TempDir(), "seed", m.token(trust.RoleSeed))
	token, err := m.first.CreateToken(TokenRequest{Role: trust.RolePublisher, Farm: "beta"}) // for whom the seed could ask the first one
	if err != nil {
		t.Fatal(err)
	}
	member, _ := m.start(t.TempDir(), "member", token.Token)
	m.await("connected", func() bool { return m.first.linked(holds) && m.first.linked(member) })
	if why := holds.warm(t, "held"); why != "" {
		t.Fatal(why)
	}
	before := holds.cache.Stats().Chunks
	if before == 0 {
		t.Fatal("it holds nothing")
	}
	k, err := member.Names.Lookup(t.Context(), content.KindImage, "other", true)
	if err != nil {
		t.Fatal(err)
	}
	id := holds.swarm.ID()
	for _, n := range []*Node{member, m.first, member} {
		if err := n.exchange.Introduce(t.Context(), id, k.Sealed); err != nil {
			t.Fatal(err)
		}
		for level := range 2 {
			level = 1 - level // the map first
			got := 0
			req := exchange.Request{Root: k.Root, Level: level, Indexes: []uint64{0}, Priority: exchange.PriorityPrefetch, Fetch: true}
			err := n.exchange.Want(t.Context(), id, req, func(r exchange.Reply) {
				if _, ok := r.(*exchange.Data); ok {
					got++
				}
			})
			if err != nil || got > 0 {
				t.Errorf("level %d: %d objects, %v", level, got, err)
			}
		}
		for b, err := range n.exchange.Bitmaps(t.Context(), id, k.Root, 1<<20) {
			if err != nil || b.Len() > 0 {
				t.Errorf("its bitmap: %v, %v", b, err)
			}
			break
		}
	}
	if s := holds.cache.Stats(); s.Chunks != before {
		t.Errorf("%d objects, and %d before", s.Chunks, before)
	}
}

// TestASeedThatMaySendNoMoreIsBusy: what was used up is told to its volunteer and to who
// asks, who does not ban it for that; it holds and fetches on, and serves the next month.
func TestASeedThatMaySendNoMoreIsBusy(t *testing.T) {
	var later atomic.Int64
	began := time.Now()
	m := &mesh{t: t, origin: t.TempDir(), terms: seed.Terms{Monthly: 7 << 19}}
	m.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	var stop func()
	m.first, stop = m.start(t.TempDir(), "first", "")
	m.publishDisks("held", "next")
	holds, _ := m.startAs(trust.RoleSeed, t.TempDir(), "seed", m.token(trust.RoleSeed))
	m.terms = seed.Terms{}
	reader, _ := m.startAs(trust.RoleSeed, t.TempDir(), "reader", m.token(trust.RoleSeed))
	m.await("connected", func() bool { return m.first.linked(holds) && m.first.linked(reader) })
	if why := holds.warm(t, "held"); why != "" {
		t.Fatal(why)
	}
	k, err := reader.Names.Lookup(t.Context(), content.KindImage, "held", true)
	if err != nil {
		t.Fatal(err)
	}
	const chunks = (4 << 20) / content.ChunkSizeDefault
	ask := func() (got int, err error) {
		for i := range uint64(chunks) {
			req := exchange.Request{Root: k.Root, Indexes: []uint64{i}, Priority: exchange.PriorityReadahead}
			err = errors.Join(err, reader.exchange.Want(t.Context(), holds.swarm.ID(), req, func(r exchange.Reply) {
				if _, ok := r.(*exchange.Data); ok {
					got++
				}
			}))
		}
		return got, err
	}
	got, err := ask()
	if !errors.Is(err, exchange.ErrBusy) || got == 0 || got*content.ChunkSizeDefault > 7<<19 {
		t.Fatalf("%d objects, %v", got, err)
	}
	if got, err := ask(); !errors.Is(err, exchange.ErrBusy) || got > 0 {
		t.Fatalf("%d objects more, %v", got, err)
	}
	s := holds.Status().Seed
	if s == nil || s.State != seed.UsedUp || s.Left > 1<<20 || s.Served > s.Monthly || s.PeersAll != 1 || s.PeersDay != 1 || len(s.Images) != 1 || s.Images[0].Name != "held" || s.Images[0].Served != int64(got)*content.ChunkSizeDefault {
		t.Errorf("%+v", s)
	}
	if m.first.Status().Seed != nil {
		t.Error("a node says what a seed sends")
	}
	if _, banned := reader.fetch.Aside()[holds.swarm.ID()]; banned || !reader.linked(holds) {
		t.Error("the seed is passed over")
	}
	if _, err := holds.Images.PublicBlock(k.Root); err == nil && holds.Allow(1<<20) == nil {
		t.Error("its API hands out more")
	}
	if why := holds.warm(t, "next"); why != "" {
		t.Errorf("it can't fetch: %s", why)
	}
	stop()
	later.Store(int64(time.Date(began.Year(), began.Month()+1, 2, 0, 0, 0, 0, time.Local).Sub(began)))
	if got, err := ask(); err == nil || got < chunks/2 { // the month is small
		t.Errorf("in the next month %d objects, %v", got, err)
	}
}

// TestASeedFoundsNoMesh: it is told what it needs, and nothing is left behind.
func TestASeedFoundsNoMesh(t *testing.T) {
	for role, want := range map[trust.Role]error{trust.RoleSeed: content.ErrInvalid, trust.RoleAdmin: content.ErrInvalid} {
		_, err := New(t.Context(), Config{Dir: t.TempDir(), Role: role, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, OpenOrigin: func(context.Context, string) (bucket.Bucket, *bucket.Metrics, error) {
			t.Error("it asks for an origin")
			return nil, nil, content.ErrUnavailable
		}})
		if !errors.Is(err, want) {
			t.Errorf("run as %s: %v", role, err)
		}
	}
}

// TestASeedIsNotRunAsANode, which would send without its owner's limits, nor a node as a
// seed: neither from its folder, nor with its token, which is good still.
func TestASeedIsNotRunAsANode(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	m.first, _ = m.start(t.TempDir(), "first", "")
	for role, other := range map[trust.Role]trust.Role{trust.RoleSeed: trust.RoleNode, trust.RoleNode: trust.RoleSeed} {
		data, token := t.TempDir(), m.token(role)
		refused := func(dir string) {
			t.Helper()
			cfg := Config{Dir: dir, Role: other, Join: token, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, OpenOrigin: func(context.Context, string) (bucket.Bucket, *bucket.Metrics, error) {
				t.Error("it asks for an origin")
				return nil, nil, content.ErrUnavailable
			}}
			if err := Check(t.Context(), cfg); !errors.Is(err, content.ErrInvalid) {
				t.Errorf("a %s may be run as a %s: %v", role, other, err)
			}
			if _, err := New(t.Context(), cfg); !errors.Is(err, content.ErrInvalid) {
				t.Errorf("a %s is run as a %s: %v", role, other, err)
			}
		}
		refused(t.TempDir())
		_, stop := m.startAs(role, data, string(role), token)
		stop()
		refused(data)
	}
}

// TestAReaderTellsImporters: nobody has verified an image; a guest of another node came
// upon the damage, and the next import stores anew what is damaged.
func TestAReaderTellsImporters(t *testing.T) {
	m := &mesh{t: t, origin: t.TempDir()}
	data := t.TempDir()
	var stop func()
	m.first, stop = m.start(data, "first", "")
	source, _ := disk(t)
	publish := func() {
		t.Helper()
		v, err := m.first.Images.Import(t.Context(), "disk", images.ImportRequest{Options: convert.Options{Path: source, Format: "raw"}, Replace: true})
		if why := m.first.done(t, v, err); why != "" {
			t.Fatal(why)
		}
	}
	publish()
	reader, _ := m.start(t.TempDir(), "reader", m.token(trust.RoleNode))
	m.await("connected", func() bool { return m.first.linked(reader) })
	stop()
	packs, err := filepath.Glob(filepath.Join(m.origin, "packs", "*", "*"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %v, %v", packs, err)
	}
	b, err := os.ReadFile(packs[0])
	if err == nil {
		b[len(b)/2] ^= 1 // in a chunk: they are nearly all of it
		err = os.WriteFile(packs[0], b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	v, err := reader.Images.Warm("disk")
	if reader.done(t, v, err) == "" {
		t.Fatal("what is damaged was read")
	}
	m.first, _ = m.start(data, "first", "")
	publish()
	v, err = m.first.Images.Verify("disk")
	if why := m.first.done(t, v, err); why != "" {
		t.Errorf("after it was imported again: %s", why)
	}
}
