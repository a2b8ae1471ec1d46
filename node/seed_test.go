package node

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/trust"
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
