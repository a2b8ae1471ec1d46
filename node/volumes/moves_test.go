package volumes

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
)

// newMoving is a pair of which a moves volumes to b; around each commit of a comes what is given.
func newMoving(t *testing.T, commit func(do func() (catalog.Record, error)) (catalog.Record, error)) *pair {
	p := newPair(t)
	p.a.cfg.Registry = around{p.store, commit}
	p.a.cfg.Member = func(context.Context, string) (trust.PublicKey, string, error) { return p.b.cfg.Self, "b", nil }
	call := p.a.cfg.Call
	p.a.cfg.Call = func(ctx context.Context, to trust.PublicKey, method string, body []byte) ([]byte, error) {
		if ctx.Err() != nil {
			return nil, content.ErrUnavailable
		}
		return call(ctx, to, method, body)
	}
	return p
}

// TestAMoveThatIsCalledOff: who moves a volume gives up when all of it is in the bucket; its
// clients have it here again.
func TestAMoveThatIsCalledOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	begun := false
	p := newMoving(t, func(do func() (catalog.Record, error)) (catalog.Record, error) {
		if begun {
			defer cancel()
		}
		return do()
	})
	p.a.run(t)
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 5, 1)
	p.a.openExport(t, "disk")
	begun = true
	if view, err := p.a.Move(ctx, "disk", "b"); err == nil || p.a.state(t, "disk") != terms.StateAttached {
		t.Fatalf("%+v, %v", view, err)
	}
	p.a.is(t, "disk", shadow)
}

// TestAMoveToWhereTheNameIsAnothers: what was made there while the origin was away is not
// taken for what is moved.
func TestAMoveToWhereTheNameIsAnothers(t *testing.T) {
	p := newMoving(t, func(do func() (catalog.Record, error)) (catalog.Record, error) { return do() })
	p.b.cfg.Registry = &nothing{commit: content.ErrUnavailable}
	p.b.run(t)
	p.b.put(t, "disk", Spec{Size: testSize})
	p.a.put(t, "disk", Spec{Size: testSize})
	if view, err := p.a.Move(t.Context(), "disk", "b"); err == nil || p.a.state(t, "disk") != terms.StateAttached {
		t.Errorf("%+v, %v", view, err)
	}
}

// TestKilledInAMove: a node that ends between giving a volume up and hearing that another has
// it serves it after its next start, unless that has it.
func TestKilledInAMove(t *testing.T) {
	for arrives, want := range map[bool]terms.State{false: terms.StateAttached, true: terms.StateReleased} {
		p := newMoving(t, func(do func() (catalog.Record, error)) (catalog.Record, error) { return do() })
		p.b.run(t)
		call, ends := p.a.cfg.Call, 0
		p.a.cfg.Call = func(ctx context.Context, to trust.PublicKey, method string, body []byte) (b []byte, err error) {
			if method != attachMethod || arrives {
				b, err = call(ctx, to, method, body)
			}
			if method != attachMethod {
				return b, err
			}
			dir := t.TempDir()
			if err := os.CopyFS(filepath.Join(dir, "volumes"), os.DirFS(p.a.cfg.Dir)); err != nil {
				t.Fatal(err)
			}
			w := startWorld(t, dir)
			p.join(w)
			p.store.down = true
			w.openAll(t.Context())
			p.store.down = false
			w.now = w.now.Add(tryAfterMax)
			w.serveLater(t.Context(), "disk")
			if got := w.state(t, "disk"); got != want {
				t.Errorf("the other has it %t: it is %s", arrives, got)
			}
			ends++
			return nil, content.ErrForbidden
		}
		p.a.put(t, "disk", Spec{Size: testSize})
		p.a.fill(t, "disk", make([]byte, testSize), 5, 1)
		if view, err := p.a.Move(t.Context(), "disk", "b"); err == nil || ends == 0 {
			t.Errorf("%d ends: %+v, %v", ends, view, err)
		}
	}
}

// TestAMoveThatFailsWhileTheOriginIsAway: this node has the volume again when the origin is back.
func TestAMoveThatFailsWhileTheOriginIsAway(t *testing.T) {
	p := newMoving(t, func(do func() (catalog.Record, error)) (catalog.Record, error) { return do() })
	call := p.a.cfg.Call
	p.a.cfg.Call = func(ctx context.Context, to trust.PublicKey, method string, body []byte) (b []byte, err error) {
		if method == attachMethod {
			p.store.down = true
			return nil, content.ErrForbidden
		}
		return call(ctx, to, method, body)
	}
	shadow := make([]byte, testSize)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", shadow, 5, 1)
	if view, err := p.a.Move(t.Context(), "disk", "b"); err == nil {
		t.Errorf("%+v", view)
	}
	for _, down := range []bool{true, true, false} {
		p.store.down = down
		p.a.now = p.a.now.Add(tryAfterMax)
		p.a.serveLater(t.Context(), "disk")
	}
	if p.a.state(t, "disk") != terms.StateAttached {
		t.Fatal("it is not served")
	}
	p.a.is(t, "disk", shadow)
}
