package instance

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/images"
	"github.com/grangemesh/grange/node/instance/state"
	"github.com/grangemesh/grange/node/instance/terms"
	"github.com/grangemesh/grange/node/operations"
	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/bucket/dir"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// newTargets is an origin beside which there are folders as targets.
func newTargets(t *testing.T) *origin {
	t.Helper()
	c, err := cache.Open(cache.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	o, log := newOrigin(), slog.New(slog.DiscardHandler)
	o.images = images.New(images.Config{Cache: c, Codec: content.NewCodec(), Now: time.Now, Log: log, Target: func(ctx context.Context, url string) (bucket.Bucket, error) {
		b, err := dir.Open(ctx, strings.TrimPrefix(url, "file://"), log)
		return reads{b, &o.targetRead}, err
	}})
	return o
}

// reads counts the bytes of what is read of packs.
type reads struct {
	bucket.Bucket
	bytes *atomic.Int64
}

func (r reads) Get(ctx context.Context, key string, part bucket.Range) (*bucket.Object, error) {
	if strings.HasPrefix(key, string(content.KeyPacks)) {
		r.bytes.Add(part.Length)
	}
	return r.Bucket.Get(ctx, key, part)
}

// TestNoTarget: an instance whose target can't be had is not provisioned, and can be obliterated.
func TestNoTarget(t *testing.T) {
	o := newTargets(t)
	w := newWorld(t, o, t.TempDir(), 1)
	spec := still()
	spec.Target = "file:///proc/nowhere"
	if _, err := w.do("web", state.Provision, spec); err == nil || !strings.Contains(err.Error(), "target file:///proc/nowhere") {
		t.Errorf("provisioned with a target that can't be: %v", err)
	}
	w.must("web", state.Obliterate, state.Unprovisioned)
	if _, err := o.Instance(t.Context(), "web"); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("there is left of the record: %v", err)
	}
}

// TestPaused: an instance whose data are being brought in, or put away, waits while it is paused, and others go on; a start of
// the node has it go on, and what has come by then is not read again.
func TestPaused(t *testing.T) {
	o, target := newTargets(t), t.TempDir()
	w := newWorld(t, o, t.TempDir(), 1)
	spec := still()
	spec.Target = "file://" + target
	v := w.must("web", state.Provision, state.Provisioned, spec)
	large := make([]byte, 64<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(large)
	if err := os.WriteFile(filepath.Join(v.Dir, "large"), large, 0o600); err != nil {
		t.Fatal(err)
	}
	paused := func(e state.Event) string {
		_, op, err := w.Do(t.Context(), "web", e, terms.Request{})
		if err != nil {
			t.Fatal(err)
		}
		for now := op; !now.Paused; {
			if now, err = w.cfg.Operations.Get(op.ID); err == nil && now.Done > 16<<20 {
				now, err = w.cfg.Operations.Pause(op.ID, true)
			}
			if now.State != operations.Running || err != nil {
				t.Fatalf("%s: %+v, %v", e, now, err)
			}
		}
		w.must("other", state.Provision, state.Provisioned, still())
		w.must("other", state.Deprovision, state.Unprovisioned)
		if v := w.get("web").view(); v.State == state.Provisioned || v.Step != state.Hydrate && v.Step != state.Dehydrate {
			t.Errorf("%s, paused: %s, %s", e, v.State, v.Step)
		}
		return op.ID
	}
	id := paused(state.Deprovision)
	if v, err := w.cfg.Operations.Pause(id, false); err != nil || v.Paused {
		t.Errorf("%+v, %v", v, err)
	}
	if op, err := w.cfg.Operations.Wait(t.Context(), id); err != nil || op.State != operations.Done {
		t.Fatalf("%+v, %v", op, err)
	}
	fresh := newTargets(t) // of a node that has nothing in its cache
	o.images = fresh.images
	paused(state.Provision)
	before := fresh.targetRead.Load()
	w = w.again(o)
	v = w.until("web", state.Provisioned)
	if got, err := os.ReadFile(filepath.Join(v.Dir, "large")); err != nil || string(got) != string(large) {
		t.Errorf("the large file is another: %v", err)
	}
	t.Logf("read %d bytes of the target until the node stopped, and %d of %d in all", before, fresh.targetRead.Load(), len(large))
	if all := fresh.targetRead.Load(); before < 8<<20 || all > int64(len(large))*11/10 {
		t.Errorf("read %d bytes of %d", all, len(large))
	}
	w.must("web", state.Obliterate, state.Unprovisioned)
}

// TestPausedAndEnded: an end that is asked for goes before a pause.
func TestPausedAndEnded(t *testing.T) {
	w := newWorld(t, newTargets(t), t.TempDir(), 1)
	spec := still()
	spec.Target = "file://" + t.TempDir()
	for name, end := range map[string]func(id string) error{
		"cancelled":   func(id string) error { _, err := w.cfg.Operations.Cancel(t.Context(), id); return err },
		"obliterated": func(string) error { _, err := w.do("obliterated", state.Obliterate); return err },
	} {
		v := w.must(name, state.Provision, state.Provisioned, spec)
		large := make([]byte, 64<<20)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(large)
		if err := os.WriteFile(filepath.Join(v.Dir, "large"), large, 0o600); err != nil {
			t.Fatal(err)
		}
		_, op, err := w.Do(t.Context(), name, state.Deprovision, terms.Request{})
		if err != nil {
			t.Fatal(err)
		}
		for now := op; !now.Paused; {
			if now, err = w.cfg.Operations.Pause(op.ID, true); err != nil && !errors.Is(err, content.ErrConflict) || now.State != operations.Running {
				t.Fatalf("%s: %+v, %v", name, now, err)
			}
		}
		if err := end(op.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i := w.get(name); i != nil && !i.isGone(); {
			if _, changed := i.now(); !i.isGone() {
				<-changed
			}
		}
	}
}

// stored are the bytes of all files in a folder.
func stored(t *testing.T, path string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			info, failed := d.Info()
			sum, err = sum+info.Size(), failed
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestOwnTarget: what an instance has goes to its own target alone, and comes from there on another node; what has not changed
// is not sent again, and obliterated it is gone.
func TestOwnTarget(t *testing.T) {
	o, target := newTargets(t), t.TempDir()
	a, b := newWorld(t, o, t.TempDir(), 1), newWorld(t, o, t.TempDir(), 2)
	spec := counting()
	spec.Target = "file://" + target
	v := a.must("web", state.Provision, state.Provisioned, spec)
	a.page(v, "add/one")
	large := make([]byte, 16<<20)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(large)
	if err := os.WriteFile(filepath.Join(v.Dir, "large"), large, 0o600); err != nil {
		t.Fatal(err)
	}
	a.must("web", state.Deprovision, state.Unprovisioned)
	if r := o.record(t, "web"); r.State != catalog.Released || r.Head != nil || r.Away.IsHole() || r.Saved == 0 || len(o.trees) > 0 {
		t.Errorf("%+v, and %d trees at the origin", r, len(o.trees))
	}
	all := stored(t, target)
	for round, node := range []*world{b, a, b} {
		v = node.must("web", state.Provision, state.Provisioned)
		if got := node.page(v, ""); got != "one "+strings.Repeat("stopped ", round+1) {
			t.Errorf("round %d: it has %q", round, got)
		}
		path := filepath.Join(v.Dir, "large")
		if got, err := os.ReadFile(path); err != nil || string(got) != string(large) {
			t.Fatalf("round %d: the large file is another: %v", round, err)
		}
		_, _ = random.Read(large[round<<20 : round<<20+1000])
		if err := os.WriteFile(path, large, 0o600); err != nil {
			t.Fatal(err)
		}
		node.must("web", state.Deprovision, state.Unprovisioned)
		sent := node.cfg.Operations.List()[0].Bytes["sent"]
		t.Logf("round %d: sent %d bytes; the target had %d at first, and has %d", round, sent, all, stored(t, target))
		if sent > 1<<20 || stored(t, target) > all+4<<20 {
			t.Errorf("round %d: of a change of 1,000 bytes", round)
		}
	}
	other := spec
	other.Target += "/other"
	if _, err := a.do("web", state.Provision, other); !errors.Is(err, content.ErrConflict) {
		t.Errorf("at another target: %v", err)
	}
	a.must("web", state.Obliterate, state.Unprovisioned)
	if left := stored(t, target); left > 0 {
		t.Errorf("%d bytes are left at the target", left)
	}
}

// TestTargetAway: what can't be put away stays here until it is, and what was put away before stays whole meanwhile.
func TestTargetAway(t *testing.T) {
	o, target := newTargets(t), filepath.Join(t.TempDir(), "target")
	w := newWorld(t, o, t.TempDir(), 1)
	spec := counting()
	spec.Target = "file://" + target
	w.page(w.must("web", state.Provision, state.Provisioned, spec), "add/one")
	w.must("web", state.Deprovision, state.Unprovisioned)
	w.page(w.must("web", state.Provision, state.Provisioned), "add/two")
	if err := os.Rename(target, target+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, op, err := w.Do(t.Context(), "web", state.Deprovision, terms.Request{})
	if err != nil {
		t.Fatal(err)
	}
	for i := w.get("web"); ; {
		e, changed := i.now()
		if e.Tries > 0 && e.Left[0] == state.Dehydrate {
			break
		}
		<-changed
	}
	if err := errors.Join(os.Remove(target), os.Rename(target+".away", target)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.cfg.Operations.Wait(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.page(w.must("web", state.Provision, state.Provisioned), ""); got != "one stopped two stopped " {
		t.Errorf("it has %q", got)
	}
	for _, bad := range []string{"https://host/x", "file://host/x", "file:relative", "s3:///x", "s3://key:secret@bucket/x"} {
		spec.Target = bad
		if _, err := w.do("bad", state.Provision, spec); !errors.Is(err, content.ErrInvalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
