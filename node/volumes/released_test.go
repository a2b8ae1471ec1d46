package volumes

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// TestWhoDiesAsItReleases: a node is killed behind each change that a detach makes elsewhere,
// and comes back without the origin. Where the record says that anybody may have the volume,
// it acknowledges nothing more of it.
func TestWhoDiesAsItReleases(t *testing.T) {
	released := 0
	for nth, died := 0, true; died; nth++ {
		synctest.Test(t, func(t *testing.T) {
			farm := newFarm(t)
			defer farm.close()
			m := farm.nodes()[0]
			_, _, err := m.Put(t.Context(), "web", Spec{Size: modelSize})
			if err == nil {
				err = m.device("web").vol.WriteAt(t.Context(), bytesOf(4, 1), 0, true)
			}
			if err != nil {
				t.Fatal(err)
			}
			m.cable.befall(fate{Kind: killedPast, Nth: nth})
			_, _ = m.Detach(t.Context(), "web", false)
			if died = m.cable.isDead(); !died {
				return
			}
			m.again()
			m.cable.offOrigin = true
			m.openAll(context.Background())
			now, err := farm.said("web")
			if err != nil {
				t.Fatal(err)
			}
			err = errors.New("it is not served")
			if a := m.device("web"); a != nil && a.vol != nil {
				err = a.front.WriteAt(t.Context(), bytesOf(4, 2), 0, true)
			}
			if now.State == catalog.Released {
				released++
			}
			if err == nil && now.State == catalog.Released {
				t.Errorf("killed behind change %d: it goes on with what anybody may have", nth)
			}
		})
	}
	if released == 0 {
		t.Error("no kill was behind the release")
	}
}

// TestDetachedWhileItsEpochIsWritten: what is detached while its next epoch is on its way to the
// record stays detached when the answer comes.
func TestDetachedWhileItsEpochIsWritten(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a = p.a.again(t)
	p.join(p.a)
	p.store.down = true
	p.a.openAll(t.Context())
	p.store.down = false
	p.a.cfg.Registry = around{p.store, func(do func() (catalog.Record, error)) (catalog.Record, error) {
		defer func() {
			if _, err := p.a.Detach(t.Context(), "disk", true); err != nil {
				t.Error(err)
			}
		}()
		return do()
	}}
	_ = p.a.device("disk").happen(t.Context(), right.Due{})
	p.a.cfg.Registry = p.store
	if e, _ := p.a.index.Get("disk"); e.Attached {
		t.Error("the next start serves it")
	}
	p.a.put(t, "disk", Spec{})
	if body, err := p.store.body("disk"); err != nil || p.a.state(t, "disk") != terms.StateAttached || body.Epoch != 3 {
		t.Errorf("it is %s, at epoch %d: %v", p.a.state(t, "disk"), body.Epoch, err)
	}
}

// TestReleasedUnheard: a volume that was given up, of which the reply was lost, is no other's
// when its node looks, and goes when it is removed.
func TestReleasedUnheard(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", make([]byte, testSize), 5, 1)
	if err := p.a.device("disk").upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.store.unheard(func() {
		if _, err := p.a.Detach(t.Context(), "disk", false); err != nil {
			t.Error(err)
		}
	})
	if err := p.a.lookAtDetached(t.Context(), "disk"); err != nil || p.a.state(t, "disk") != terms.StateReleased {
		t.Errorf("it is %s, %v", p.a.state(t, "disk"), err)
	}
	p.a.orphans.Keep(t.Context())
	if err := p.a.Remove(t.Context(), "disk", RemoveSpec{}); err != nil || p.store.has(content.KindVolume, "disk") {
		t.Errorf("removed: %v, it is there %t", err, p.store.has(content.KindVolume, "disk"))
	}
}
