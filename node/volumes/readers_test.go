package volumes

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// newReader is another node of a pair's farm.
func (p *pair) newReader(t *testing.T, self byte) *world {
	w := newWorld(t)
	w.cfg.Self = trust.PublicKey{self}
	p.join(w)
	return w
}

// folded writes to a volume of w, and brings all of it to the bucket.
func (w *world) folded(t *testing.T, shadow []byte, seed uint64, want fold.Want) []byte {
	t.Helper()
	w.fill(t, "disk", shadow, 8, seed)
	if err := w.device("disk").folds.Run(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(shadow)
}

// moment fails unless w reads the volume as it was, and says so.
func (w *world) moment(t *testing.T, want []byte, through uint64) {
	t.Helper()
	w.is(t, "disk", want)
	if v, err := w.Get("disk"); err != nil || v.State != terms.StateReading || !v.ReadOnly || v.Through != through || v.FoldedAt.IsZero() {
		t.Errorf("want entry %d: %+v, %v", through, v, err)
	}
}

// through is up to where the bucket has the volume.
func (p *pair) through(t *testing.T) uint64 {
	t.Helper()
	body, err := p.store.body("disk")
	if err != nil {
		t.Fatal(err)
	}
	return body.Through().Seq
}

// TestReadersBesideAWriter: several nodes read a volume while another writes and folds it,
// and a third takes it over: each as the bucket had it when it came, over a restart without
// the origin too, until it asks for what is newer, and nobody has it open. The record has
// nothing of them.
func TestReadersBesideAWriter(t *testing.T) {
	p := newPair(t)
	c := p.newReader(t, 3)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	first := p.a.folded(t, shadow, 1, fold.Safe)
	at := p.through(t)
	p.a.fill(t, "disk", shadow, 3, 2) // which is in no bucket
	r, _, _ := p.a.records().Volume(t.Context(), "disk")
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.b.moment(t, first, at)
	second := p.a.folded(t, shadow, 3, fold.Safe)
	c.put(t, "disk", Spec{ReadOnly: true})
	c.moment(t, second, p.through(t))
	for n := range uint64(4) {
		p.a.folded(t, shadow, 4+n, []fold.Want{fold.Safe, fold.Chunks}[n%2])
	}
	p.b.moment(t, first, at)
	if now, body, err := p.a.records().Volume(t.Context(), "disk"); err != nil || body.Epoch != 1 || body.Holder != p.a.cfg.Self || now.Version <= r.Version {
		t.Errorf("the record: %+v, %v", body, err)
	}
	dev := p.b.device("disk").front
	if err := dev.WriteAt(t.Context(), make([]byte, 512), 0, false); !errors.Is(err, content.ErrReadOnly) || !dev.Geometry().ReadOnly {
		t.Errorf("a write: %v", err)
	}
	if err := dev.Flush(t.Context()); err != nil {
		t.Errorf("a flush: %v", err)
	}
	if all, err := p.b.Everywhere(t.Context()); err != nil || len(all) != 1 || all[0].State != terms.StateAttached {
		t.Errorf("of the mesh: %+v, %v", all, err)
	}
	if s, err := p.b.Snapshot(t.Context(), "disk", SnapshotSpec{}); err != nil || s.ID != "disk@1" { // made where it is written
		t.Errorf("%+v, %v", s, err)
	}

	p.store.down = true
	p.b = p.b.again(t)
	p.b.cfg.Self = trust.PublicKey{2}
	p.join(p.b)
	p.b.openAll(t.Context())
	p.store.down = false
	p.b.moment(t, first, at)

	last := p.a.folded(t, shadow, 9, fold.Safe)
	taker := p.newReader(t, 4)
	taker.put(t, "disk", Spec{Takeover: true})
	p.b.look(t)
	p.b.hearTaken(t.Context(), "disk")
	p.b.moment(t, first, at)
	_, leave, err := exports{p.b.Volumes}.Lookup(t.Context(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.b.moment(t, first, at)
	leave()
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.b.moment(t, last, p.through(t))
	if _, created, err := p.b.Put(t.Context(), "disk", Spec{ReadOnly: true}); err != nil || created {
		t.Errorf("again: %t, %v", created, err)
	}
	c.moment(t, second, c.view(c.index.Sorted()[0]).Through)
	if found, err := os.ReadDir(p.b.cfg.Dir); err != nil || len(found) != 1 {
		t.Errorf("left: %v, %v", found, err)
	}
}

// TestReaderHasNoRight: who reads a volume neither writes it, nor changes or removes it, and
// ends reading without a trace; who has it is told of readers before it removes it.
func TestReaderHasNoRight(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.cfg.Holders.Live = func() []trust.PublicKey { return []trust.PublicKey{p.b.cfg.Self} }
	first := p.a.folded(t, shadow, 1, fold.Safe)
	p.b.put(t, "disk", Spec{ReadOnly: true})
	for what, spec := range map[string]Spec{"attach": {}, "takeover": {Takeover: true}, "create": {Size: testSize, ReadOnly: true}} {
		if _, _, err := p.b.Put(t.Context(), "disk", spec); !errors.Is(err, content.Attached) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, resize := p.b.Resize(t.Context(), "disk", 2*testSize)
	_, limit := p.b.SetLimits(t.Context(), "disk", Limits{IOPS: 9})
	_, rollback := p.b.Rollback(t.Context(), "disk", "disk@1")
	if err := p.b.Remove(t.Context(), "disk", RemoveSpec{Force: true, Purge: true}); !errors.Is(err, content.ErrConflict) {
		t.Errorf("rm: %v", err)
	}
	for what, err := range map[string]error{"resize": resize, "limit": limit, "rollback": rollback} {
		if err == nil || !strings.Contains(err.Error(), p.a.cfg.Self.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); !errors.Is(err, content.InUse) || !strings.Contains(err.Error(), p.b.cfg.Self.String()) {
		t.Errorf("rm beside a reader: %v", err)
	}
	p.a.cfg.Member = func(context.Context, string) (trust.PublicKey, string, error) { return p.b.cfg.Self, "b", nil }
	if _, err := p.a.Move(t.Context(), "disk", "b"); !errors.Is(err, content.ErrConflict) || p.a.state(t, "disk") != terms.StateAttached || p.a.view(p.a.index.Sorted()[0]).Epoch != 1 {
		t.Errorf("a move to a reader: %v", err)
	}
	if m, err := p.b.past(p.b.device("disk")).Open(t.Context(), 0); err != nil || m.Vol != p.b.device("disk").vol || m.At.Seq != p.through(t) {
		t.Errorf("what a client compares with snapshots: %+v, %v", m, err)
	}
	p.b.moment(t, first, p.through(t))
	if v, err := p.b.Detach(t.Context(), "disk", false); err != nil || v.State != terms.StateReleased {
		t.Errorf("%+v, %v", v, err)
	}
	if found, err := os.ReadDir(p.b.cfg.Dir); err != nil || len(found) != 0 {
		t.Errorf("left: %v, %v", found, err)
	}
	p.b.put(t, "disk", Spec{ReadOnly: true})
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.b.Put(t.Context(), "disk", Spec{ReadOnly: true}); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("once it is gone: %v", err)
	}
	p.b.is(t, "disk", first)
}

// TestReaderOfAReleasedVolume: what nobody writes is read too, and attached beside that.
func TestReaderOfAReleasedVolume(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 8, 1)
	if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	at := p.through(t)
	for _, w := range []*world{p.a, p.b} {
		w.put(t, "disk", Spec{ReadOnly: true})
		w.moment(t, shadow, at)
	}
	if body, err := p.store.body("disk"); err != nil || body.State != "released" || body.Epoch != 1 {
		t.Errorf("the record: %+v, %v", body, err)
	}
	if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
		t.Fatal(err)
	}
	p.a.put(t, "disk", Spec{})
	first := bytes.Clone(shadow)
	p.a.folded(t, shadow, 2, fold.Safe)
	p.b.moment(t, first, at)
}

// swept is a bucket in which somebody may ask for what was deleted.
type swept struct{ bucket.Bucket }

func (b swept) Get(ctx context.Context, key string, r bucket.Range) (*bucket.Object, error) {
	for o, err := range b.List(ctx, key, "") {
		if err == nil && o.Key == key {
			return b.Bucket.Get(ctx, key, r)
		}
	}
	return nil, content.ErrNotFound
}

// TestReaderBesideAFold: what was to be read goes from the bucket while it is being copied;
// the reader has what came instead.
func TestReaderBesideAFold(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	for n := range uint64(3) {
		p.a.folded(t, shadow, n, fold.Safe)
	}
	folds := 0
	p.b.cfg.Origin = func() (bucket.Bucket, error) {
		if folds++; folds <= 2 {
			p.a.folded(t, shadow, 10+uint64(folds), fold.Chunks)
			p.a.folded(t, shadow, 20+uint64(folds), fold.Safe)
		}
		return swept{p.shelf.bucket}, nil
	}
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.b.moment(t, shadow, p.through(t))
	if folds < 3 {
		t.Errorf("%d folds came between", folds)
	}
	p.a.folded(t, shadow, 30, fold.Safe)
	p.b.cfg.Origin = func() (bucket.Bucket, error) { return nil, content.ErrUnavailable }
	at := p.b.view(p.b.index.Sorted()[0]).Through
	if _, _, err := p.b.Put(t.Context(), "disk", Spec{ReadOnly: true}); !errors.Is(err, content.ErrUnavailable) {
		t.Errorf("without an origin: %v", err)
	}
	if v, err := p.b.Get("disk"); err != nil || v.State != terms.StateReading || v.Through != at {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestKilledAtAReader: a node that ends while it becomes a reader is one, of a whole moment,
// or none.
func TestKilledAtAReader(t *testing.T) {
	p := newPair(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	first := p.a.folded(t, shadow, 1, fold.Safe)
	at := p.through(t)
	p.b.put(t, "disk", Spec{ReadOnly: true})
	p.a.folded(t, shadow, 2, fold.Safe)
	lives := 0
	check := func(w *world, reads bool) {
		t.Helper()
		w.cfg.Self = p.b.cfg.Self
		p.join(w)
		w.openAll(context.WithoutCancel(t.Context()))
		if reads {
			w.moment(t, first, at)
		} else if len(w.List()) != 0 {
			t.Errorf("%+v", w.List())
		}
		if found, err := os.ReadDir(w.cfg.Dir); err != nil || len(w.List()) != len(found) {
			t.Errorf("left: %v, %v", found, err)
		}
	}
	life := func() string {
		dir := t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "volumes"), os.DirFS(p.b.cfg.Dir)); err != nil {
			t.Fatal(err)
		}
		lives++
		return dir
	}
	whole := life()
	var left []string
	p.b.cfg.At = func(string) { left = append(left, life()) }
	p.b.put(t, "disk", Spec{ReadOnly: true})
	for _, dir := range left {
		check(startWorld(t, dir), true)
	}
	name := filepath.Join(whole, "volumes", p.a.index.Sorted()[0].Folder())
	if err := os.Rename(name, name+halfMade); err != nil { // where the older one has made way
		t.Fatal(err)
	}
	check(startWorld(t, whole), true)
	fresh := p.newReader(t, 5)
	fresh.cfg.At = func(string) {
		dir := t.TempDir()
		if err := os.CopyFS(filepath.Join(dir, "volumes"), os.DirFS(fresh.cfg.Dir)); err != nil {
			t.Fatal(err)
		}
		check(startWorld(t, dir), false)
		lives++
	}
	if fresh.put(t, "disk", Spec{ReadOnly: true}); lives < 5 {
		t.Errorf("%d ends", lives)
	}
}
