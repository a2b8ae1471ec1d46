package images

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/convert"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

// publish commits the record of an image without packs.
func publish(t *testing.T, n *world, name string) {
	t.Helper()
	id, err := pack.ParseID("mesh/2026112022-000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	at := func(n byte, offset uint32) pack.Extent {
		return pack.Extent{CID: content.Sum([]byte{n}), Location: pack.Location{Pack: id, Offset: offset, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}}
	}
	root := content.Root{Size: 1 << 30, ChunkSize: content.ChunkSizeDefault, Map: content.Sum([]byte{1})}
	head := pack.Head{Root: root, Scope: content.Mesh(), Node: at(1, 1<<24), Page: at(2, 1<<24+1<<12), Manifest: at(3, 1<<25)}
	body := catalog.Image{Head: head, Chunks: 100, Stored: 1 << 20}
	b, err := body.Encode(n.cfg.Codec)
	if err == nil {
		_, err = n.cfg.Names.Commit(t.Context(), catalog.Change{Kind: content.KindImage, Name: name, Body: b, Since: time.Now()})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReplacingATag is refused as what it is, whatever was asked for.
func TestReplacingATag(t *testing.T) {
	n := newWorld(t)
	publish(t, n, "debian")
	if _, err := n.Tag(t.Context(), "debian", "stable"); err != nil {
		t.Fatal(err)
	}
	for _, replace := range []bool{false, true} {
		if _, err := n.previous(t.Context(), content.KindImage, "stable", replace); !errors.Is(err, content.ErrConflict) {
			t.Errorf("a tag, replace %t: %v", replace, err)
		}
	}
	if _, err := n.previous(t.Context(), content.KindImage, "debian", false); !errors.Is(err, content.ErrExists) {
		t.Errorf("an image: %v", err)
	}
	if old, err := n.previous(t.Context(), content.KindImage, "debian", true); err != nil || old == nil {
		t.Errorf("an image to be replaced: %v", err)
	}
}

// TestSizeOfADisk is its own: only a file system that is made has the size asked for.
func TestSizeOfADisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := convert.Open(t.Context(), convert.Options{Path: path, Format: convert.Raw})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for asked, want := range map[int64]error{0: nil, 1000: nil, 1024: nil, 5: content.ErrInvalid, 2048: content.ErrInvalid} {
		if err := checkSize(disk, asked); !errors.Is(err, want) {
			t.Errorf("--size %d of a disk of %d: %v", asked, disk.Size(), err)
		}
	}
}

// TestListSaysWhatTheOriginConfirms, and what is only remembered while it is away.
func TestListSaysWhatTheOriginConfirms(t *testing.T) {
	n := newWorld(t)
	publish(t, n, "debian")
	for _, x := range []struct {
		err  error
		want bool
	}{{nil, true}, {content.ErrUnavailable, false}, {nil, true}} {
		n.away = x.err != nil
		list, _, err := n.List(t.Context(), content.RootDisk, "", 10)
		if err != nil || len(list) != 1 || list[0].Confirmed != x.want || list[0].Age < 0 {
			t.Errorf("%+v, %v, want it confirmed: %t", list, err, x.want)
		}
	}
}

// TestRemoveSaysWhatIsLeft: tags of the image.
func TestRemoveSaysWhatIsLeft(t *testing.T) {
	n := newWorld(t)
	publish(t, n, "debian")
	publish(t, n, "other")
	for image, tag := range map[string]string{"debian": "stable", "other": "testing"} {
		if _, err := n.Tag(t.Context(), image, tag); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		name string
		want Removed
	}{
		{"debian", Removed{content.KindImage, []string{"stable"}}},
		{"stable", Removed{Kind: content.KindTag}},
		{"debian", Removed{}},
		{"never", Removed{}},
	} {
		if got, err := n.Remove(t.Context(), x.name); err != nil || !reflect.DeepEqual(got, x.want) {
			t.Errorf("%s: %+v, %v, want %+v", x.name, got, err, x.want)
		}
	}
}

// TestRequestsOfATag counts them: one look at the image, and the write; a removal looks
// at what it removes, and lists nothing.
func TestRequestsOfATag(t *testing.T) {
	n := newWorld(t)
	store := n.store.(*mem.Bucket)
	publish(t, n, "debian")
	if gets := store.Count(mem.Get); gets != 0 {
		t.Errorf("%d reads for an image that nobody had", gets)
	}
	count := func(what string, f func() error) {
		t.Helper()
		gets, puts, lists := store.Count(mem.Get), store.Count(mem.Put), store.Count(mem.List)
		if err := f(); err != nil {
			t.Fatal(err)
		}
		gets, puts, lists = store.Count(mem.Get)-gets, store.Count(mem.Put)-puts, store.Count(mem.List)-lists
		if gets > 1 || puts != 1 || lists != 0 {
			t.Errorf("%s: %d reads, %d writes, %d lists", what, gets, puts, lists)
		}
	}
	tag := func() error { _, err := n.Tag(t.Context(), "debian", "stable"); return err }
	count("a new tag", tag)
	count("a tag that is set again", tag)
	count("a removal", func() error { _, err := n.Remove(t.Context(), "stable"); return err })
	count("a tag that was removed", tag)
	// Another node moves the tag meanwhile, and this one sets it all the same.
	other := trust.NewPrivateKey()
	chain, err := n.cfg.Signer.Issue(trust.Identity{Key: other.Public(), Role: trust.RolePublisher, Farm: "lyon"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.New(catalog.Config{Bucket: store, Verifier: n.cfg.Verifier, Signer: trust.Signer{Key: other, Chain: chain}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Get(t.Context(), content.KindTag, "stable")
	if err == nil {
		_, err = c.Commit(t.Context(), catalog.Change{Kind: r.Kind, Name: r.Name, Body: r.Body, Base: &r})
	}
	if err == nil {
		err = tag()
	}
	if k, ok := n.cfg.Names.Held(content.KindTag, "stable"); err != nil || !ok || k.Version != r.Version+2 {
		t.Errorf("version %d after %d, %v", k.Version, r.Version, err)
	}
	if _, err := n.Tag(t.Context(), "stable", "debian"); !errors.Is(err, content.OtherKind) {
		t.Errorf("a tag in the place of an image: %v", err)
	}
}

// An import lists only packs that its scope may refer to.
func TestWhatAnImportMayReferTo(t *testing.T) {
	public, mesh, farm := content.Public(), content.Mesh(), content.Farm("a")
	for scope, want := range map[content.Scope][]content.Scope{
		public: {public}, mesh: {public, mesh}, farm: {public, mesh, farm},
	} {
		if got := mayReferTo(scope); !slices.Equal(got, want) {
			t.Errorf("scope %s: %v, want %v", scope, got, want)
		}
	}
}

// TestBlocksThatAreNotPublicAreAbsent: a block that this node has for itself, its farm
// or the mesh is answered as one that nobody has, and not read for it.
func TestBlocksThatAreNotPublicAreAbsent(t *testing.T) {
	n := newWorld(t)
	for reach := cache.ReachNone; reach <= cache.ReachPublic; reach++ {
		v := content.Seal([]byte{1, byte(reach)})
		absent := content.Seal([]byte{2, byte(reach)}).CID()
		if err := n.cfg.Cache.Put(v, reach); err != nil {
			t.Fatal(err)
		}
		got, err := n.PublicBlock(v.CID())
		if reach == cache.ReachPublic {
			if err != nil || got.CID() != v.CID() {
				t.Errorf("a public block: %v", err)
			}
			if err := n.cfg.Cache.Narrow([]content.CID{v.CID()}, cache.ReachMesh); err != nil {
				t.Fatal(err)
			}
			got, err = n.PublicBlock(v.CID())
		}
		_, none := n.PublicBlock(absent)
		if !errors.Is(err, content.ErrNotFound) || strings.ReplaceAll(err.Error(), v.CID().String(), "") != strings.ReplaceAll(none.Error(), absent.String(), "") || got.Bytes() != nil {
			t.Errorf("a block of reach %d: %v; an absent one: %v", reach, err, none)
		}
	}
}

// TestRootsArePublicBlocks: what a name of scope public stands for, until it is forgotten.
func TestRootsArePublicBlocks(t *testing.T) {
	n := newWorld(t)
	for i, scope := range []content.Scope{content.Public(), content.Mesh(), content.Farm("lyon")} {
		root := content.Root{Size: 1 << (20 + i), ChunkSize: content.ChunkSizeDefault}
		want, err := root.Encode(n.cfg.Codec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.cfg.Fetcher.Learn(fetch.Root{Head: pack.Head{Root: root, Scope: scope}}); err != nil {
			t.Fatal(err)
		}
		got, err := n.PublicBlock(want.CID())
		if public := scope.IsPublic(); public != (err == nil) || public && got.CID() != want.CID() {
			t.Errorf("the root of an image of scope %s: %v", scope, err)
		}
		n.cfg.Fetcher.Forget(want.CID(), scope)
		if _, err := n.PublicBlock(want.CID()); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("scope %s, forgotten: %v", scope, err)
		}
	}
}

// TestReferencesAreNames: an image with an OCI reference is published, tagged, pinned,
// listed, exported and removed like any other, at an origin of files.
func TestReferencesAreNames(t *testing.T) {
	im := newImporter(t)
	const name, tag = "ghcr.io/org/debian:12", "ghcr.io/org/debian:latest"
	im.publish(name)
	if _, err := os.Stat(filepath.Join(im.origin, "records", "image", "ghcr.io%2Forg%2Fdebian%3A12")); err != nil {
		t.Error(err)
	}
	if i, err := im.Tag(t.Context(), name, tag); err != nil || i.Name != tag || i.Target != name {
		t.Errorf("%+v, %v", i, err)
	}
	if err := im.Pin(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if i, err := im.Get(t.Context(), name); err != nil || !i.Pinned {
		t.Errorf("%+v, %v", i, err)
	}
	if list, _, err := im.List(t.Context(), content.RootDisk, "", 10); err != nil || len(list) != 2 || list[0].Name != name || list[1].Name != tag {
		t.Errorf("%+v, %v", list, err)
	}
	if v := im.done(im.Verify(name)); v.Error != "" {
		t.Error(v.Error)
	}
	if v := im.done(im.Export(tag, filepath.Join(t.TempDir(), "disk"), false)); v.Error != "" {
		t.Error(v.Error)
	}
	if got, err := im.Remove(t.Context(), name); err != nil || !reflect.DeepEqual(got, Removed{content.KindImage, []string{tag}}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := im.Get(t.Context(), "ghcr.io/../debian"); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a name that climbs: %v", err)
	}
}
