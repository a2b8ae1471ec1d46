// Package origins fills buckets as members of a mesh do: images in packs with their records, and volumes with their
// segments. It is for tests of what looks after all of an origin.
package origins

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/pack/index"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
)

const (
	// Farm is the one that the member is of.
	Farm = "a"
	// ChunkSize is that of all images, and PackSize where their packs are closed: each has several.
	ChunkSize = content.ChunkSizeMin
	PackSize  = 512 << 10
)

// Origin is a bucket, and a member of its mesh.
type Origin struct {
	bucket.Bucket
	Signer   trust.Signer
	Verifier *trust.Verifier

	t     testing.TB
	codec *content.Codec
}

// New makes a bucket one of a mesh with one member, an admin.
func New(t testing.TB, b bucket.Bucket) *Origin {
	t.Helper()
	mesh, key := trust.NewPrivateKey(), trust.NewPrivateKey()
	chain, err := trust.Signer{Key: mesh}.Issue(trust.Identity{Key: key.Public(), Role: trust.RoleAdmin, Farm: Farm}, time.Now())
	o := &Origin{b, trust.Signer{Key: key, Chain: chain}, trust.NewVerifier(mesh.Public()), t, content.NewCodec()}
	o.ok(err)
	o.ok(catalog.ClaimMesh(t.Context(), b, mesh.Public()))
	return o
}

// Each runs a test on an empty bucket in memory, and on one in a directory.
func Each(t *testing.T, test func(t *testing.T, b bucket.Bucket)) {
	t.Run("memory", func(t *testing.T) { test(t, mem.New(t, mem.Config{MayReadDeleted: true})) })
	t.Run("directory", func(t *testing.T) { test(t, Directory(t)) })
}

// Directory is an empty bucket in a directory.
func Directory(t testing.TB) bucket.Bucket {
	t.Helper()
	b, err := dir.Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (o *Origin) ok(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// Source is where the records are read.
func (o *Origin) Source() garbage.Source {
	return garbage.Source{Bucket: o.Bucket, Verifier: o.Verifier, Now: time.Now}
}

// Chunk is one of those that a seed makes.
func Chunk(seed, i int) []byte {
	b := make([]byte, ChunkSize)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(i), byte(i >> 8)}).Read(b[:ChunkSize/2])
	return b
}

// Chunks are the first n that a seed makes.
func Chunks(seed, n int) (out [][]byte) {
	for i := range n {
		out = append(out, Chunk(seed, i))
	}
	return out
}

// Store builds the packs of an image of those chunks, and refers to what stands, as an import does.
func (o *Origin) Store(scope content.Scope, chunks [][]byte) pack.Head {
	o.t.Helper()
	known, err := index.Load(o.t.Context(), index.Config{Bucket: o, Scopes: []content.Scope{content.Public(), content.Mesh(), scope}, Verifier: o.Verifier})
	o.ok(err)
	b, err := build.New(o.t.Context(), build.Config{
		Bucket: o, Scope: scope, Size: int64(len(chunks)) * ChunkSize, ChunkSize: ChunkSize, PackSize: PackSize, Known: known, Signer: o.Signer,
	})
	o.ok(err)
	defer b.Abort()
	for i, chunk := range chunks {
		o.ok(b.Add(o.t.Context(), uint64(i), chunk))
	}
	head, _, err := b.Finish(o.t.Context())
	o.ok(err)
	return head
}

// Import gives a name to an image of those chunks, which it stores.
func (o *Origin) Import(name string, chunks [][]byte) pack.Head {
	o.t.Helper()
	head := o.Store(content.Mesh(), chunks)
	o.Name(content.KindImage, name, head)
	return head
}

// Name gives a name of some kind to an image.
func (o *Origin) Name(kind content.Kind, name string, head pack.Head) {
	o.t.Helper()
	body, err := catalog.Image{Head: head}.Encode(o.codec)
	o.ok(err)
	o.Commit(catalog.Change{Kind: kind, Name: name, Body: body})
}

// Commit writes a record, over what the name has.
func (o *Origin) Commit(ch catalog.Change) {
	o.t.Helper()
	c, err := catalog.New(catalog.Config{Bucket: o, Verifier: o.Verifier, Signer: o.Signer})
	o.ok(err)
	if now, err := c.Get(o.t.Context(), ch.Kind, ch.Name); err == nil {
		ch.Base = &now
		if ch.Delete {
			ch.Farm = now.Farm
		}
	}
	_, err = c.Commit(o.t.Context(), ch)
	o.ok(err)
}

// Remove deletes a name.
func (o *Origin) Remove(kind content.Kind, name string) {
	o.t.Helper()
	o.Commit(catalog.Change{Kind: kind, Name: name, Delete: true})
}

// Volume writes the record of a volume with those segments.
func (o *Origin) Volume(name string, id content.VolumeID, segments ...content.SegmentRef) {
	o.t.Helper()
	body, err := catalog.Volume{
		ID: id, Size: 1 << 20, Epoch: 1, Holder: o.Signer.Key.Public(), State: catalog.Released, Policy: catalog.PolicyOrigin,
		Folded: catalog.Folded{Segments: segments},
	}.Encode(o.codec)
	o.ok(err)
	o.Commit(catalog.Change{Kind: content.KindVolume, Name: name, Farm: Farm, Body: body})
}

// Snapshot writes the record of a snapshot of a volume with those segments.
func (o *Origin) Snapshot(volume string, number uint64, id content.VolumeID, segments ...content.SegmentRef) {
	o.t.Helper()
	folded := catalog.Folded{Segments: segments}
	s := catalog.Snapshot{Volume: volume, Number: number, ID: id, Size: 1 << 20, Epoch: 1, Folded: folded, At: folded.Through(), Durable: true, Created: time.Now()}
	body, err := s.Encode(o.codec)
	o.ok(err)
	o.Commit(catalog.Change{Kind: content.KindSnapshot, Name: s.Ref().RecordName(), Farm: Farm, Body: body})
}

// Lease writes the record of a lease of some content.
func (o *Origin) Lease(head pack.Head) {
	o.t.Helper()
	body, err := catalog.Lease{Folded: catalog.Folded{Head: &head}, Size: head.Root.Size, Holder: o.Signer.Key.Public(), What: "volume web1"}.Encode(o.codec)
	o.ok(err)
	o.Commit(catalog.Change{Kind: content.KindLease, Name: catalog.LeaseName(o.Signer.Key.Public(), head.Root.Map), Farm: Farm, Body: body})
}

// Segments puts the next segments of a volume's journal behind a place, each of so many bytes.
func (o *Origin) Segments(id content.VolumeID, after content.Position, sizes ...int) (out []content.SegmentRef) {
	o.t.Helper()
	for _, n := range sizes {
		ref, body := next(id, after, n)
		o.Add(ref.Key(), body)
		out, after = append(out, ref), ref.Through
	}
	return out
}

// Tails is Segments put by flushes; it returns them as the one segment of a record, and their keys.
func (o *Origin) Tails(id content.VolumeID, after content.Position, sizes ...int) (content.SegmentRef, []string) {
	o.t.Helper()
	var chain []content.SegmentRef
	var keys []string
	for _, n := range sizes {
		ref, body := next(id, after, n)
		o.Add(ref.TailKey(), append(catalog.EncodeTail(ref), body...))
		chain, keys, after = append(chain, ref), append(keys, ref.TailKey()), ref.Through
	}
	return catalog.JoinTails(chain), keys
}

func next(id content.VolumeID, after content.Position, n int) (content.SegmentRef, []byte) {
	body := bytes.Repeat([]byte{id[0], byte(after.Number), 3, 5, 7}, n/5+1)[:n]
	return content.SegmentRef{
		Volume: id, Epoch: 1, After: after, Through: content.Position{Number: after.Number + 1, Seq: after.Seq + 10}, Bytes: int64(n), Sum: content.HalfSum(body),
	}, body
}

// Add puts an object where none is.
func (o *Origin) Add(key string, b []byte) {
	o.t.Helper()
	_, err := o.Bucket.Put(o.t.Context(), key, bucket.Bytes(b), bucket.IfAbsent())
	o.ok(err)
}

// Object returns the bytes of an object.
func (o *Origin) Object(key string) []byte {
	o.t.Helper()
	b, _, err := bucket.ReadAll(o.t.Context(), o, key, pack.SizeMax)
	o.ok(err)
	return b
}

// Damage puts other bytes in place of an object's; nil is to delete it.
func (o *Origin) Damage(key string, change func(b []byte) []byte) {
	o.t.Helper()
	b := change(bytes.Clone(o.Object(key)))
	o.ok(o.Delete(o.t.Context(), key))
	if b != nil {
		o.Add(key, b)
	}
}

// Keys returns the keys that begin with a prefix.
func (o *Origin) Keys(prefix string) (keys []string) {
	o.t.Helper()
	for info, err := range o.List(o.t.Context(), prefix, "") {
		o.ok(err)
		keys = append(keys, info.Key)
	}
	return keys
}

// Packs returns the packs that a root refers to.
func (o *Origin) Packs(head pack.Head) (ids []pack.ID) {
	o.t.Helper()
	m, err := pack.NewReader(o).ReadManifest(o.t.Context(), head)
	o.ok(err)
	for _, p := range m.Packs {
		ids = append(ids, p.ID)
	}
	return ids
}

// Rewrite writes the frames of a pack into another, in another order, and leaves a stub of it.
func (o *Origin) Rewrite(id pack.ID) (to pack.ID) {
	o.t.Helper()
	to = id[:len(id)-4] + "beef"
	b := o.Object(id.Key())
	d, err := pack.NewReader(o).ReadDirectory(o.t.Context(), id)
	o.ok(err)
	w := pack.NewWriter(to, nil)
	for _, e := range slices.Backward(d.Entries) {
		w.Add(e.Role, e.CID, int(e.Raw), e.Codec, b[e.Offset:e.End()])
	}
	s, err := w.Seal(nil)
	o.ok(err)
	o.Add(to.Key(), s.Bytes)
	o.Damage(id.Key(), func([]byte) []byte { return pack.NewWriter(id, nil).SealStub(to).Bytes })
	return to
}
