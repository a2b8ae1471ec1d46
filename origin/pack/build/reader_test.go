package build

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/simulations/mem"
)

// frames returns the chunks of a one-pack image as its directory lists them.
func chunkFrames(t *testing.T, from *memory, h pack.Head) []pack.Extent {
	t.Helper()
	d, err := pack.NewReader(from).ReadDirectory(t.Context(), h.Node.Pack)
	if err != nil {
		t.Fatal(err)
	}
	var out []pack.Extent
	for _, e := range d.Entries {
		if e.Role == pack.RoleChunk {
			out = append(out, e.Extent)
		}
	}
	return out
}

// onePack builds a small image into one pack.
func onePack(t *testing.T) (*memory, pack.Head, image) {
	t.Helper()
	im := newImage(40, 1, 0)
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	if len(to.Keys("packs/")) != 1 {
		t.Fatalf("packs %v", to.Keys("packs/"))
	}
	return to, h, im
}

func TestFramesOfARunAreReadAtOnce(t *testing.T) {
	to, h, im := onePack(t)
	frames := chunkFrames(t, to, h)
	asked := []pack.Extent{frames[7], frames[2], frames[30], frames[2]}
	to.forget()
	got, err := pack.NewReader(to).ReadFrames(t.Context(), asked)
	if err != nil || to.asked(mem.Get) != 1 {
		t.Fatalf("%d reads, error %v", to.asked(mem.Get), err)
	}
	for i, chunk := range []uint64{7, 2, 30, 2} {
		if !bytes.Equal(got[i].Bytes(), im.chunks[chunk]) {
			t.Fatalf("frame %d is not chunk %d", i, chunk)
		}
	}
	if got, err := pack.NewReader(to).ReadFrames(t.Context(), nil); got != nil || err != nil {
		t.Fatalf("no frames: %v, %v", got, err)
	}
}

// drip is a bucket whose answers end with an error once their reader asks for more than
// reach has let through.
type drip struct {
	bucket.Bucket
	reach *atomic.Int64 // an offset in the object
}

func (d drip) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	o, err := d.Bucket.Get(ctx, key, r)
	if err == nil {
		o.Body = &dripping{o.Body, r.Offset, d.reach}
	}
	return o, err
}

type dripping struct {
	io.ReadCloser
	at    int64
	reach *atomic.Int64
}

func (d *dripping) Read(p []byte) (int, error) {
	if d.at >= d.reach.Load() {
		return 0, errKilled
	}
	n, err := d.ReadCloser.Read(p[:min(int64(len(p)), d.reach.Load()-d.at)])
	d.at += int64(n)
	return n, err
}

// TestFramesAreHandedOnAsTheyCome: none waits for the bytes of those behind it, in
// whichever order they were asked for.
func TestFramesAreHandedOnAsTheyCome(t *testing.T) {
	to, h, im := onePack(t)
	frames := chunkFrames(t, to, h)
	asked := []uint64{5, 3, 4}
	var extents []pack.Extent
	for _, i := range asked {
		extents = append(extents, frames[i])
	}
	var reach atomic.Int64
	reach.Store(int64(frames[3].End()))
	var came []uint64
	err := pack.NewReader(drip{to, &reach}).Stream(t.Context(), extents, func(i int, v content.Verified) {
		if !bytes.Equal(v.Bytes(), im.chunks[asked[i]]) {
			t.Errorf("frame %d is not chunk %d", i, asked[i])
		}
		if came = append(came, asked[i]); len(came) < len(asked) {
			reach.Store(int64(frames[3+len(came)].End())) // only now comes the next
		}
	})
	if err != nil || !slices.Equal(came, []uint64{3, 4, 5}) {
		t.Errorf("%v came: %v", came, err)
	}
	reach.Store(int64(frames[4].End()))
	came = nil
	err = pack.NewReader(drip{to, &reach}).Stream(t.Context(), extents, func(i int, _ content.Verified) { came = append(came, asked[i]) })
	if !errors.Is(err, content.ErrUnavailable) || !slices.Equal(came, []uint64{3, 4}) {
		t.Errorf("of a reply that is cut %v came: %v", came, err)
	}
}

// TestWhatIsKeptStaysAsItCame: memory is lent anew only once its taker has given it back,
// whatever others read meanwhile.
func TestWhatIsKeptStaysAsItCame(t *testing.T) {
	im := newImage(40, 1, 0)
	for i := uint64(0); i < 40; i += 3 { // of either codec
		im.chunks[i] = bytes.Repeat([]byte{byte(i + 1)}, testChunk)
	}
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	frames, r := chunkFrames(t, to, h), pack.NewReader(to)
	var readers sync.WaitGroup
	for n := range 4 {
		readers.Go(func() {
			var kept []content.Verified
			for i := range 100 {
				from := (7*i + n) % 30
				if err := r.Stream(t.Context(), frames[from:from+8], func(place int, v content.Verified) {
					if (place+i)%5 == 0 {
						kept = append(kept, v)
						return
					}
					clear(v.Bytes()) // whoever still looked at it would see that
					r.Free(v)
				}); err != nil {
					t.Error(err)
				}
			}
			for _, v := range kept {
				if content.Sum(v.Bytes()) != v.CID() {
					t.Errorf("%s has changed", v.CID())
				}
			}
		})
	}
	readers.Wait()
}

func TestAFlippedByteIsNamed(t *testing.T) {
	to, h, im := onePack(t)
	frames := chunkFrames(t, to, h)
	bad := frames[3]
	to.Corrupt(bad.Pack.Key(), func(b []byte) { b[bad.Offset+bad.Length/2] ^= 1 })
	got, err := pack.NewReader(to).ReadFrames(t.Context(), frames[:6])
	wantErr(t, err, content.ErrCorrupt)
	if !strings.Contains(err.Error(), bad.String()) {
		t.Fatalf("the error does not name %s: %v", bad.Location, err)
	}
	for i := range 6 {
		if i == 3 && !got[i].CID().IsHole() || i != 3 && !bytes.Equal(got[i].Bytes(), im.chunks[uint64(i)]) {
			t.Fatalf("frame %d: %d bytes", i, len(got[i].Bytes()))
		}
	}
	err = verifyPack(t.Context(), pack.NewReader(to), bad.Pack)
	wantErr(t, err, content.ErrCorrupt)
	if !strings.Contains(err.Error(), bad.String()) {
		t.Fatalf("the error does not name %s: %v", bad.Location, err)
	}
	_, err = pack.NewReader(to).Relocate(t.Context(), bad)
	wantErr(t, err, content.ErrCorrupt)
}

// Each byte of a pack is under some check; but for bits that zstd does not use,
// which change nothing.
func TestEachFlippedByteIsFound(t *testing.T) {
	im := newImage(3, 1, 0)
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	key := h.Node.Pack.Key()
	whole := to.object(t, key)
	r := pack.NewReader(to)
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 0x40
		to.set(t, key, b)
		if err := verifyPack(t.Context(), r, h.Node.Pack); err == nil {
			check(t, to, h, im)
		} else {
			wantErr(t, err, content.ErrCorrupt)
		}
	}
	for n := 0; n < len(whole); n += 7 {
		to.set(t, key, whole[:n])
		wantErr(t, verifyPack(t.Context(), r, h.Node.Pack), content.ErrCorrupt)
	}
}

func TestHintsThatPointNowhere(t *testing.T) {
	to, h, _ := onePack(t)
	r, good := pack.NewReader(to), chunkFrames(t, to, h)[0]
	for name, c := range map[string]struct {
		change func(*pack.Extent)
		want   error
	}{
		"beyond the end":        {func(e *pack.Extent) { e.Offset = 1 << 30 }, content.ErrCorrupt},
		"across the end":        {func(e *pack.Extent) { e.Offset = uint32(len(to.object(t, e.Pack.Key()))) - 10 }, content.ErrCorrupt},
		"another frame":         {func(e *pack.Extent) { e.Offset += 7 }, content.ErrCorrupt},
		"another raw length":    {func(e *pack.Extent) { e.Raw++ }, content.ErrCorrupt},
		"another CID":           {func(e *pack.Extent) { e.CID[0] ^= 1 }, content.ErrCorrupt},
		"an unknown codec":      {func(e *pack.Extent) { e.Codec = 9 }, content.ErrCorrupt},
		"an unknown key":        {func(e *pack.Extent) { e.Key = 1 }, content.ErrCorrupt},
		"in the header":         {func(e *pack.Extent) { e.Offset = 0 }, content.ErrCorrupt},
		"a frame of no bytes":   {func(e *pack.Extent) { e.Length = 0 }, content.ErrCorrupt},
		"a frame that overflow": {func(e *pack.Extent) { e.Offset = 1<<32 - 1 }, content.ErrCorrupt},
		"a frame too large":     {func(e *pack.Extent) { e.Raw, e.Length, e.Codec = 1<<30, 1<<30, pack.CodecRaw }, content.ErrInvalid},
		"a pack that is gone":   {func(e *pack.Extent) { e.Pack = e.Pack[:len(e.Pack)-1] + "0" }, content.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			e := good
			c.change(&e)
			_, err := r.ReadFrames(t.Context(), []pack.Extent{e})
			wantErr(t, err, c.want)
		})
	}
	far := good
	far.Offset += 8 << 20
	_, err := r.ReadFrames(t.Context(), []pack.Extent{good, far})
	wantErr(t, err, content.ErrInvalid)
}

// A rewritten pack leaves a stub that says where its frames went.
func TestRelocateFollowsStubs(t *testing.T) {
	to, h, im := onePack(t)
	r, old := pack.NewReader(to), chunkFrames(t, to, h)
	fresh := func(digit string) pack.ID { return old[0].Pack[:len(old[0].Pack)-1] + pack.ID(digit) }
	first, second := fresh("x"), fresh("y")
	for _, id := range []*pack.ID{&first, &second} { // make the last digits valid and new
		for _, d := range "0123456789abcdef" {
			if candidate := fresh(string(d)); candidate != old[0].Pack && candidate != first {
				*id = candidate
			}
		}
	}
	w := pack.NewWriter(second, nil)
	for _, i := range []uint64{4, 5} {
		w.Add(pack.RoleChunk, old[i].CID, testChunk, pack.CodecRaw, im.chunks[i])
	}
	s, err := w.Seal(nil)
	if err != nil {
		t.Fatal(err)
	}
	to.set(t, second.Key(), s.Bytes)
	to.set(t, first.Key(), pack.NewWriter(first, nil).SealStub(second).Bytes)
	to.set(t, old[0].Pack.Key(), pack.NewWriter(old[0].Pack, nil).SealStub(first).Bytes)

	_, err = r.ReadFrames(t.Context(), old[5:6])
	wantErr(t, err, content.ErrNotFound)
	now, err := r.Relocate(t.Context(), old[5])
	if err != nil || now.Pack != second {
		t.Fatalf("now at %v, error %v", now, err)
	}
	if got, err := r.ReadFrames(t.Context(), []pack.Extent{now}); err != nil || !bytes.Equal(got[0].Bytes(), im.chunks[5]) {
		t.Fatalf("moved frame: error %v", err)
	}
	_, err = r.Relocate(t.Context(), old[6])
	wantErr(t, err, content.ErrNotFound)

	to.set(t, second.Key(), pack.NewWriter(second, nil).SealStub(first).Bytes)
	r = pack.NewReader(to)
	_, err = r.Relocate(t.Context(), old[5])
	wantErr(t, err, content.ErrCorrupt)
	if err := verifyPack(t.Context(), r, first); err != nil {
		t.Fatal(err)
	}
	narrow := pack.ID("farm/a/" + string(first[len("mesh/"):]))
	to.set(t, first.Key(), pack.NewWriter(first, nil).SealStub(narrow).Bytes)
	_, err = pack.NewReader(to).Relocate(t.Context(), old[5])
	wantErr(t, err, content.ErrForbidden)
}

func TestALongDirectoryTakesTwoReads(t *testing.T) {
	im := newImage(2000, 1, 0)
	for i := range im.chunks {
		im.chunks[i] = slices.Repeat([]byte{byte(i), byte(i>>8) + 1}, testChunk/2)
	}
	to := newMemory(t)
	cfg := config(to, im)
	cfg.PackSize = pack.SizeTarget
	h, _ := build(t, cfg, im)
	to.forget()
	d, err := pack.NewReader(to).ReadDirectory(t.Context(), h.Node.Pack)
	if err != nil || len(d.Entries) < 2000 || to.asked(mem.Get) != 2 {
		t.Fatalf("%d reads, error %v", to.asked(mem.Get), err)
	}
}

func TestMissingPacks(t *testing.T) {
	im := newImage(1000, 1, 0)
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	m, err := pack.NewReader(to).ReadManifest(t.Context(), h)
	if err != nil || len(m.Packs) < 8 {
		t.Fatalf("packs %v, error %v", m.Packs, err)
	}
	gone := []string{m.Packs[1].ID.Key(), m.Packs[5].ID.Key()}
	for _, key := range gone {
		if err := to.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	to.forget()
	missing, err := pack.MissingPacks(t.Context(), to, m, nil)
	if err != nil || !slices.Equal(missing, gone) || to.asked(mem.List) != 1 {
		t.Fatalf("missing %v after %d lists, error %v", missing, to.asked(mem.List), err)
	}
}

func TestNodeAndPageBelongTogether(t *testing.T) {
	im := newImage(3*content.MapFanout, 5, 0)
	to := newMemory(t)
	h, _ := build(t, config(to, im), im)
	r := pack.NewReader(to)
	top, err := r.ReadNode(t.Context(), h.Scope, 2, h.Top())
	if err != nil {
		t.Fatal(err)
	}
	first, _ := top.Page.ChildPair(top.Node, 0)
	second, _ := top.Page.ChildPair(top.Node, 1)
	var frames []content.Verified
	for _, e := range []pack.Extent{first.Node, second.Page} {
		got, err := r.ReadFrames(t.Context(), []pack.Extent{e})
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, got[0])
	}
	_, err = pack.DecodeMapNode(content.NewCodec(), h.Scope, 1, frames[0], frames[1])
	wantErr(t, err, content.ErrCorrupt)
	_, err = r.ReadNode(t.Context(), h.Scope, 2, first)
	wantErr(t, err, content.ErrCorrupt)
	_, err = r.ReadNode(t.Context(), content.Public(), 1, first)
	wantErr(t, err, content.ErrForbidden)
}
