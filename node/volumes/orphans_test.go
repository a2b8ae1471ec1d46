package volumes

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
)

// fencedOff has the other node take a volume, and this one learn of it; it returns what the
// orphan is called.
func (p *pair) fencedOff(t *testing.T, name string) string {
	t.Helper()
	body, err := p.store.body(name)
	if err != nil {
		t.Fatal(err)
	}
	p.b.put(t, name, Spec{Takeover: true})
	_ = p.a.device(name).happen(t.Context(), right.Due{}) // it says that it is fenced
	p.a.giveUpLost(t.Context())
	p.a.keepOrphans(t.Context())
	return fmt.Sprintf("snapshot:%s@e%d-orphan", name, body.Epoch)
}

// TestAnOrphanIsAllThatWasHeld: what a fenced node held, and the bucket had not, reads back
// byte by byte: of a fork too, which begins with what its parent had on that disk alone; over
// a start, beside the volume when that is back, compared, and forked.
func TestAnOrphanIsAllThatWasHeld(t *testing.T) {
	p := newPair(t)
	shadow := imageBytes()
	p.a.put(t, "disk", Spec{From: refOf(t, "image:debian"), Size: testSize})
	p.a.fill(t, "disk", shadow, 12, 1)
	p.a.put(t, "fork", Spec{From: refOf(t, "volume:disk")})
	fork := bytes.Clone(shadow)
	p.a.fill(t, "fork", fork, 12, 2)
	p.a.put(t, "child", Spec{From: refOf(t, "volume:fork")})
	want := map[string][]byte{"disk": shadow, "fork": fork, "child": bytes.Clone(fork)}
	p.a.fill(t, "child", want["child"], 12, 3)
	orphans := map[string]string{}
	check := func(when string) {
		t.Helper()
		for name, id := range orphans {
			if !bytes.Equal(p.a.exported(t, id), want[name]) {
				t.Errorf("%s: the orphan of %s has other bytes than that node held", when, name)
			}
		}
	}
	for name := range want {
		orphans[name] = p.fencedOff(t, name)
	}
	check("at once")
	p.a = p.a.again(t)
	p.join(p.a)
	if err := p.a.openAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after a start")
	for name, id := range orphans {
		p.a.put(t, "of-"+name, Spec{From: refOf(t, id)})
		p.a.is(t, "of-"+name, want[name])
	}
	for name := range want {
		if _, err := p.b.Detach(t.Context(), name, false); err != nil {
			t.Fatal(err)
		}
		p.a.put(t, name, Spec{})
	}
	check("beside the volume")
	p.a.cfg.Publish = func(_ context.Context, _ string, body catalog.Image, _ bool) error {
		m, err := p.a.bucket().Open(t.Context(), catalog.Snapshot{Size: testSize, Head: &body.Head})
		if err != nil {
			return err
		}
		defer m.Close()
		got := make([]byte, testSize)
		if err := m.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want["child"]) {
			t.Errorf("promoted, it has other bytes: %v", err)
		}
		return nil
	}
	if err := p.a.Promote(t.Context(), refOf(t, orphans["child"]), PromoteSpec{Image: "kept", Scope: content.Farm(testFarm)}, nil); err != nil {
		t.Error(err)
	}
}

// TestOrphansAreLookedAtInTurn: what a fenced node has of a volume is opened by one at a
// time: who attaches it to be read is not told that it is in use.
func TestOrphansAreLookedAtInTurn(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	p.a.fill(t, "disk", make([]byte, testSize), 12, 1)
	p.b.put(t, "disk", Spec{Takeover: true})
	_ = p.a.device("disk").happen(t.Context(), right.Due{}) // it says that it is fenced
	p.a.giveUpLost(t.Context())
	end := p.a.turn("disk")
	p.a.keepOrphans(t.Context())
	if p.store.has(content.KindSnapshot, "disk@e1-orphan") {
		t.Error("the folder was opened beside who has the volume's turn")
	}
	end()
	p.a.keepOrphans(t.Context())
	if !p.store.has(content.KindSnapshot, "disk@e1-orphan") {
		t.Error("it has no name")
	}
}
