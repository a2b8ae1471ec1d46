package catalog

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/golden"
	"github.com/grangemesh/grange/simulations/mem"
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

// chain returns segments behind a place, of those epochs and volumes.
func chain(base content.Position, epochs []uint64, volumes []content.VolumeID) (out []content.SegmentRef) {
	at := base
	for i, epoch := range epochs {
		x := content.SegmentRef{Volume: volumes[i], Epoch: epoch, After: at, Through: content.Position{Number: at.Number + 1 + uint64(i%2), Seq: at.Seq + uint64(i)*90_000}, Bytes: 256 << 20, Sum: [16]byte(bytes.Repeat([]byte{byte(i)}, 16))}
		out, at = append(out, x), x.Through
	}
	return out
}

func goldenVolume(t testing.TB) Volume {
	h := head(t, content.Farm("a"))
	own, parent, base := content.VolumeID{0: 1, 15: 2}, content.VolumeID{9}, content.Position{Number: 12, Seq: 3456}
	segments := chain(base, []uint64{9, 3, 7}, []content.VolumeID{parent, own, own})
	segments[1].Tails = 2
	return Volume{
		ID: own, Size: 10 << 30, From: content.Ref{Kind: content.KindImage, Name: "debian"}, Epoch: 7, Incarnation: 1 << 63, Holder: trust.PublicKey{31: 9}, State: Attached,
		Policy: "farm:2", Degrade: PolicyLocal, DegradedSince: time.UnixMilli(1_795_000_000_001), Generation: 3, ReadOnly: true, Folded: Folded{&h, []content.CID{cid(4), cid(5)}, base, segments, nil, time.Time{}},
		Holders: []trust.PublicKey{{7}, {8}}, Snapshots: 4, Rolling: 2, Shared: 3460,
		IOPS: 1000, Rate: 100 << 20, FsUsed: 1 << 30, FoldedAt: time.UnixMilli(1_795_000_000_123),
	}
}

// hotVolume has few segments, and a list.
func hotVolume(t testing.TB) Volume {
	v := goldenVolume(t)
	root, err := v.Head.Root.Encode(content.NewCodec())
	if err != nil {
		t.Fatal(err)
	}
	v.Segments, v.Shared = v.Segments[:1], 0
	v.Hot = &Boot{Root: root.CID(), Runs: 1, Made: 1_795_000_000, Stages: []BootStage{{Share: 1, Chunks: []uint64{1, 2, 3, 70}}, {Share: 1, Chunks: []uint64{0, 9}}}}
	return v
}

func goldenSnapshot(t testing.TB) Snapshot {
	v := goldenVolume(t)
	return Snapshot{
		Volume: "web1", Number: 4, ID: v.ID, Label: "before the upgrade", Size: v.Size, Epoch: 7, Folded: v.Folded,
		At: v.Through(), Durable: true, Parent: v.From, Holder: v.Holder, Created: time.UnixMilli(1_795_000_000_456), FsUsed: 1 << 30,
	}
}

func TestGoldenBodies(t *testing.T) {
	c := content.NewCodec()
	tag := goldenImage(t)
	tag.Target, tag.Lineage = "debian-12", []content.CID{}
	listed := goldenImage(t)
	listed.Boot = goldenBoot(t)
	for name, i := range map[string]Image{"image": goldenImage(t), "tag": tag, "image.boot": listed} {
		b, err := i.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b)
		if back, err := DecodeImage(c, b); err != nil || !reflect.DeepEqual(back, i) {
			t.Errorf("%s: %+v, %v, want %+v", name, back, err, i)
		}
	}
	blank := Volume{ID: content.VolumeID{1}, Size: 512, Policy: PolicyLocal, State: Released}
	for name, v := range map[string]Volume{"volume": goldenVolume(t), "volume.blank": blank, "volume.hot": hotVolume(t)} {
		b, err := v.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b)
		if back, err := DecodeVolume(c, b); err != nil || !reflect.DeepEqual(back, v) {
			t.Errorf("%s: %+v, %v, want %+v", name, back, err, v)
		}
	}
	orphan := Snapshot{Volume: "web1", Orphan: true, Epoch: 7, Size: 512, At: content.Position{Number: 3, Seq: 9}}
	for name, x := range map[string]Snapshot{"snapshot": goldenSnapshot(t), "snapshot.orphan": orphan} {
		b, err := x.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		golden.Check(t, name, b)
		if back, err := DecodeSnapshot(c, x.Ref().RecordName(), b); err != nil || !reflect.DeepEqual(back, x) {
			t.Errorf("%s: %+v, %v, want %+v", name, back, err, x)
		}
	}
	if name := orphan.Ref().String(); name != "snapshot:web1@e7-orphan" {
		t.Errorf("an orphan is called %s", name)
	}
}

// TestTheLargestRecordsFit seals the largest bodies with the longest chain, and a
// farm whose name is as long as a name may be.
func TestTheLargestRecordsFit(t *testing.T) {
	long, farm := strings.Repeat("x", content.NameMax), strings.Repeat("x", content.FarmMax)
	now := time.Now()
	first, admin, node := trust.NewPrivateKey(), trust.NewPrivateKey(), trust.NewPrivateKey()
	mesh := trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: first.Public(), Role: trust.RoleAdmin, Farm: farm}, now)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(by trust.Signer, to trust.PublicKey, role trust.Role) trust.Chain {
		chain, err := by.Issue(trust.Identity{Key: to, Role: role, Farm: farm}, now)
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
	h := head(t, content.Farm(farm))
	codec := content.NewCodec()
	list := scattered(t).Fit(BootSizeMax)
	root, err := h.Root.Encode(codec)
	if size := len(list.encode()); err != nil || size < BootSizeMax-4 {
		t.Fatalf("the largest list takes %d bytes, %v", size, err)
	}
	list.Root = root.CID()
	image, err := Image{h, []content.CID{cid(1), cid(2), cid(3), cid(4), cid(5)}, strings.Repeat("ü", 1000), 1 << 62, 1 << 62, long, true, list}.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	v := Volume{
		ID: content.VolumeID{1}, Size: content.SizeMax, From: content.Ref{Kind: content.KindSnapshot, Name: long, Seq: 1 << 62}, Epoch: 1 << 62, Incarnation: 1 << 63, Holder: node.Public(),
		State: Released, Policy: "farm:4", Degrade: PolicyLocal, DegradedSince: now, Generation: 1 << 63,
		Folded: Folded{Head: &h, Lineage: []content.CID{cid(1), cid(2), cid(3), cid(4)}, Base: content.Position{Number: 1 << 62, Seq: 1 << 62}}, Holders: make([]trust.PublicKey, HoldersMax), Snapshots: 1 << 62, Rolling: 1 << 62, Shared: 1 << 62, IOPS: 1 << 62, Rate: 1 << 62, FsUsed: 1 << 62, FoldedAt: now,
	}
	at := v.Base
	for i := range SegmentsMax { // the first ones of other volumes; all of the most bytes, with as many entries as those have room for
		x := content.SegmentRef{Volume: v.ID, Epoch: 1<<40 + uint64(i), After: at, Through: content.Position{Number: at.Number + 100, Seq: at.Seq + 1<<20}, Bytes: 1 << 29, Tails: 100}
		if i < AncestorsMax {
			x.Volume = content.VolumeID{9, byte(i)}
		}
		v.Segments, at = append(v.Segments, x), x.Through
	}
	volume, err := v.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	few := v
	few.Segments, few.Hot = v.Segments[:HotSegmentsMax], list.Fit(HotSizeMax)
	hot, err := few.Encode(codec)
	if size := len(few.Hot.encode()); err != nil || size < HotSizeMax-4 {
		t.Fatalf("the largest list of a volume takes %d bytes, %v", size, err)
	}
	snapshot, err := Snapshot{
		Volume: long, Number: 1 << 62, ID: v.ID, Label: strings.Repeat("x", LabelMax), Size: v.Size, Epoch: v.Epoch, Folded: v.Folded,
		At: at, Durable: true, Parent: v.From, Holder: v.Holder, Created: now, FsUsed: 1 << 62,
	}.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	i := goldenInstance(t)
	i.Head.Scope, i.Spec, i.From = content.Farm(farm), bytes.Repeat([]byte{1}, SpecMax), "image:"+long
	instance, err := i.Encode(codec)
	if err != nil {
		t.Fatal(err)
	}
	numbered := content.Ref{Kind: content.KindSnapshot, Name: long, Seq: 1 << 62}.RecordName()
	for _, ch := range []Change{{Kind: content.KindTag, Name: long, Farm: farm, Body: image}, {Kind: content.KindVolume, Name: long, Farm: farm, Body: volume}, {Kind: content.KindVolume, Name: long[1:], Farm: farm, Body: hot}, {Kind: content.KindInstance, Name: long, Farm: farm, Body: instance}, {Kind: content.KindSnapshot, Name: numbered, Farm: farm, Body: snapshot}} {
		r := commit(t, c, ch)
		t.Logf("the largest %s takes %d bytes", ch.Kind, len(r.Sealed))
		if _, err := Describe(codec, r.Envelope); err != nil {
			t.Errorf("the largest %s: %v", ch.Kind, err)
		}
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

// TestKindsHaveTheirRoots: an image is a disk and a tree a tree, whatever who signed it says; a tag may be of either.
func TestKindsHaveTheirRoots(t *testing.T) {
	disk, tree := goldenImage(t).Head, goldenImage(t).Head
	tree.Root.Kind, tree.Root.Count = content.RootTree, 1<<13
	for _, x := range []struct {
		kind content.Kind
		head pack.Head
		good bool
	}{{content.KindImage, disk, true}, {content.KindImage, tree, false}, {content.KindTree, tree, true}, {content.KindTree, disk, false}, {content.KindTag, disk, true}, {content.KindTag, tree, true}} {
		if err := isOf(x.kind, x.head); (err == nil) != x.good || err != nil && !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%s with a root of kind %q: %v", x.kind, x.head.Root.Kind, err)
		}
	}
}

func TestBadBodies(t *testing.T) {
	c := content.NewCodec()
	for name, spoil := range map[string]func(*imageWire){
		"another magic":  func(w *imageWire) { w.Magic = "grange-image/2" },
		"no head":        func(w *imageWire) { w.Encoded = nil },
		"many ancestors": func(w *imageWire) { w.Lineage = make([]content.CID, content.LineageMax+1) },
		"a hole":         func(w *imageWire) { w.Lineage = make([]content.CID, 1) },
		"a bad target":   func(w *imageWire) { w.Target = "a//b" },
		"a long source":  func(w *imageWire) { w.Source = strings.Repeat("x", sourceMax+1) },
	} {
		i := goldenImage(t)
		h, err := i.Head.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		w := imageWire{Magic: imageMagic, Encoded: h, Image: i}
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
		"no size":          func(v *Volume) { v.Size = 0 },
		"half a sector":    func(v *Volume) { v.Size -= 256 },
		"a larger root":    func(v *Volume) { v.Size = v.Head.Root.Size - content.SectorSize },
		"a tree's root":    func(v *Volume) { v.Head.Root.Kind, v.Head.Root.Count = content.RootTree, 1<<13 },
		"too large":        func(v *Volume) { v.Size = content.SizeMax + 1 },
		"a state unsaid":   func(v *Volume) { v.State = "" },
		"no policy":        func(v *Volume) { v.Policy = "" },
		"many holders":     func(v *Volume) { v.Holders = make([]trust.PublicKey, HoldersMax+1) },
		"another degrade":  func(v *Volume) { v.Degrade = "origin" },
		"a gap":            func(v *Volume) { v.Segments = v.Segments[1:] },
		"no root":          func(v *Volume) { v.Head = nil },
		"an empty segment": func(v *Volume) { v.Segments[2].Bytes = 0 },
		"many tails":       func(v *Volume) { v.Segments[1].Tails = 3 },
		"tails below none": func(v *Volume) { v.Segments[1].Tails = -1 },
		"a number twice":   func(v *Volume) { v.Segments[2].Through.Number = v.Segments[1].Through.Number },
		"many segments": func(v *Volume) {
			v.Segments = chain(v.Base, make([]uint64, SegmentsMax+1), make([]content.VolumeID, SegmentsMax+1))
		},
		"many other forks": func(v *Volume) {
			v.Segments = chain(v.Base, make([]uint64, 5), []content.VolumeID{{1}, {2}, {3}, {4}, {5}})
		},
		"a hole of a root":  func(v *Volume) { v.Lineage[0] = content.CID{} },
		"a negative limit":  func(v *Volume) { v.IOPS = -1 },
		"a time before all": func(v *Volume) { v.FoldedAt = time.UnixMilli(-1) },
	} {
		v := goldenVolume(t)
		spoil(&v)
		if _, err := v.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("volume with %s: %v, want ErrInvalid", name, err)
		}
	}
	for name, spoil := range map[string]func(*Snapshot){
		"more than there was": func(x *Snapshot) { x.At.Seq-- },
		"less than it says":   func(x *Snapshot) { x.At.Seq++ },
		"a long label":        func(x *Snapshot) { x.Label = strings.Repeat("x", LabelMax+1) },
		"no number":           func(x *Snapshot) { x.Number = 0 },
	} {
		x := goldenSnapshot(t)
		spoil(&x)
		if _, err := x.Encode(c); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("snapshot with %s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestPolicies(t *testing.T) {
	for policy, want := range map[string]int{PolicyLocal: 0, PolicyOrigin: 0, "farm:1": 1, "farm:4": 4} {
		if k, err := PolicyHolders(policy); err != nil || k != want {
			t.Errorf("%s: %d, %v", policy, k, err)
		}
	}
	for _, policy := range []string{"", "farm", "farm:", "farm:0", "farm:5", "farm:02", "farm:+2", "farm:-1", "S3"} {
		if _, err := PolicyHolders(policy); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", policy, err)
		}
	}
}

func FuzzDecodeImage(f *testing.F) {
	golden.Seeds(f, "image", "tag", "image.boot")
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
		back, err := DecodeImage(c, again)
		if twice, failed := back.Encode(c); err != nil || failed != nil || !bytes.Equal(again, twice) || !reflect.DeepEqual(back.Boot, i.Boot) {
			t.Fatalf("%+v came back as %+v, %v, %v", i, back, err, failed)
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
		if again, err := v.Encode(c); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%+v came back as %x, %v", v, again, err)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	golden.Seeds(f, "snapshot", "snapshot.orphan")
	c := content.NewCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range []string{"web1@4", "web1@e7-orphan"} {
			s, err := DecodeSnapshot(c, name, b)
			if err != nil {
				if !errors.Is(err, content.ErrCorrupt) {
					t.Fatal(err)
				}
				continue
			}
			if again, err := s.Encode(c); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%+v came back as %x, %v", s, again, err)
			}
		}
	})
}
