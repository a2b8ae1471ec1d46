package catalog

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket/mem"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/golden"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

func cid(n byte) content.CID { return content.Sum([]byte{n}) }

// head returns a head of the scope, with packs of that scope.
func head(t testing.TB, scope content.Scope) pack.Head {
	t.Helper()
	id, err := pack.ParseID(scope.String() + "/2026112022-000102030405060708090a0b0c0d0e0f")
	if err != nil {
		t.Fatal(err)
	}
	at := func(n byte, offset uint32) pack.Extent {
		return pack.Extent{CID: cid(n), Location: pack.Location{Pack: id, Offset: offset, Length: 1 << 12, Raw: 1 << 14, Codec: pack.CodecZstd}}
	}
	return pack.Head{
		Root: content.Root{Size: 1 << 30, ChunkSize: content.ChunkSizeDefault, Map: cid(1)}, Scope: scope,
		Node: at(1, 1<<24), Page: at(2, 1<<24+1<<12), Manifest: at(3, 1<<25),
	}
}

func goldenImage(t testing.TB) Image {
	return Image{Head: head(t, content.Mesh()), Lineage: []content.CID{cid(4), cid(5)}, Source: "debian.qcow2", Chunks: 3721, Stored: 161 << 20}
}

func goldenVolume(t testing.TB) Volume {
	h := head(t, content.Farm("a"))
	return Volume{
		ID: [16]byte{0: 1, 15: 2}, Size: 10 << 30, From: content.Ref{Kind: content.KindImage, Name: "debian"}, Head: &h, Durability: "local", Epoch: 7,
		Holder: trust.PublicKey{31: 9}, State: Attached, ReadOnly: true, FoldedAt: time.UnixMilli(1_795_000_000_123),
	}
}

func TestGoldenBodies(t *testing.T) {
	c := content.NewCodec()
	tag := goldenImage(t)
	tag.Target, tag.Lineage = "debian-12", []content.CID{}
	for name, i := range map[string]Image{"image": goldenImage(t), "tag": tag} {
		b, err := i.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b)
		if back, err := DecodeImage(c, b); err != nil || !reflect.DeepEqual(back, i) {
			t.Errorf("%s: %+v, %v, want %+v", name, back, err, i)
		}
	}
	blank := Volume{ID: [16]byte{1}, Size: 512, Durability: "local", State: Released}
	for name, v := range map[string]Volume{"volume": goldenVolume(t), "volume.blank": blank} {
		b, err := v.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b)
		if back, err := DecodeVolume(c, b); err != nil || !reflect.DeepEqual(back, v) {
			t.Errorf("%s: %+v, %v, want %+v", name, back, err, v)
		}
	}
}

// TestTheLargestRecordsFit seals the largest bodies with the longest chain, and a
// farm whose name is as long as a name may be.
func TestTheLargestRecordsFit(t *testing.T) {
	long := strings.Repeat("x", content.NameMax)
	now := time.Now()
	first, admin, node := trust.NewPrivateKey(), trust.NewPrivateKey(), trust.NewPrivateKey()
	mesh, chain, _, err := trust.FoundMesh(first.Public(), long, now)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(by trust.Signer, to trust.PublicKey, role trust.Role) trust.Chain {
		chain, err := by.Issue(trust.Grant{Subject: to, Role: role, Farm: long}, now)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	adminChain := issue(trust.Signer{Key: first, Chain: chain}, admin.Public(), trust.RoleAdmin)
	signer := trust.Signer{Key: node, Chain: issue(trust.Signer{Key: admin, Chain: adminChain}, node.Public(), trust.RolePublisher)}
	c, err := New(Config{Bucket: mem.New(t, mem.Config{}), Verifier: trust.NewVerifier(mesh.Public()), Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	h := head(t, content.Farm(long))
	codec := content.NewCodec()
	image, err := Image{h, []content.CID{cid(1), cid(2), cid(3), cid(4), cid(5)}, strings.Repeat("ü", 1000), 1 << 62, 1 << 62, long, true}.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	volume, err := Volume{[16]byte{1}, content.SizeMax, content.Ref{Kind: content.KindVolume, Name: long, Folded: true}, &h, "farm:65536", 1 << 62, node.Public(), Released, true, now}.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range []Change{{Kind: content.KindTag, Name: long, Farm: long, Body: image}, {Kind: content.KindVolume, Name: long, Farm: long, Body: volume}} {
		r := commit(t, c, ch)
		t.Logf("the largest %s takes %d bytes", ch.Kind, len(r.Sealed))
	}
}

// TestSourcesAreText imports files whose names are not.
func TestSourcesAreText(t *testing.T) {
	c := content.NewCodec()
	for source, want := range map[string]string{"a\xffb": "ab", strings.Repeat("x", sourceMax-1) + "ü": strings.Repeat("x", sourceMax-1)} {
		i := goldenImage(t)
		i.Source = source
		b, err := i.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeImage(c, b); err != nil || back.Source != want {
			t.Errorf("%q came back as %q, %v", source, back.Source, err)
		}
	}
}

// treeHead is a head that no image or volume has.
func treeHead(t *testing.T, c *content.Codec) []byte {
	h := goldenImage(t).Head
	h.Root.Kind, h.Root.Count = content.RootTree, 1<<13
	b, err := h.Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBadBodies(t *testing.T) {
	c := content.NewCodec()
	for name, spoil := range map[string]func(*imageWire){
		"another magic":  func(w *imageWire) { w.Magic = "grange-image/2" },
		"no head":        func(w *imageWire) { w.Encoded = nil },
		"many ancestors": func(w *imageWire) { w.Lineage = make([]content.CID, content.LineageMax+1) },
		"a hole":         func(w *imageWire) { w.Lineage = make([]content.CID, 1) },
		"a bad target":   func(w *imageWire) { w.Target = "a//b" },
		"a tree's root":  func(w *imageWire) { w.Encoded = treeHead(t, c) },
		"a long source":  func(w *imageWire) { w.Source = strings.Repeat("x", sourceMax+1) },
	} {
		i := goldenImage(t)
		h, err := i.Head.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		w := imageWire{imageMagic, h, i}
		spoil(&w)
		b, err := c.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeImage(c, b); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("image with %s: %v, want ErrCorrupt", name, err)
		}
	}
	for name, spoil := range map[string]func(*Volume){
		"no size":        func(v *Volume) { v.Size = 0 },
		"a larger root":  func(v *Volume) { v.Size = v.Head.Root.Size - content.SectorSize },
		"a tree's root":  func(v *Volume) { v.Head.Root.Kind, v.Head.Root.Count = content.RootTree, 1<<13 },
		"too large":      func(v *Volume) { v.Size = content.SizeMax + 1 },
		"a state unsaid": func(v *Volume) { v.State = "" },
		"a long policy":  func(v *Volume) { v.Durability = strings.Repeat("x", 100) },
	} {
		v := goldenVolume(t)
		spoil(&v)
		if _, err := v.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("volume with %s: %v, want ErrInvalid", name, err)
		}
	}
}

func FuzzDecodeImage(f *testing.F) {
	golden.Seeds(f, "image", "tag")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := DecodeImage(c, b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := i.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeImage(c, again); err != nil || fmt.Sprint(back) != fmt.Sprint(i) {
			t.Fatalf("%+v came back as %+v, %v", i, back, err)
		}
	})
}

func FuzzDecodeVolume(f *testing.F) {
	golden.Seeds(f, "volume", "volume.blank")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := DecodeVolume(c, b)
		if err != nil {
			if !errors.Is(err, content.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, err := v.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeVolume(c, again); err != nil || !reflect.DeepEqual(back, v) {
			t.Fatalf("%+v came back as %+v, %v", v, back, err)
		}
	})
}
