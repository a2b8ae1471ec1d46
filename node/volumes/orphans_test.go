package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/volumes/right"
	"github.com/grangemesh/grange/node/volumes/terms"
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
	p.a.orphans.Keep(t.Context())
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
	p.a.openAll(t.Context())
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
		m, err := p.a.bucket().Open(t.Context(), catalog.Snapshot{Size: testSize, Folded: catalog.Folded{Head: &body.Head}})
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
	p.a.orphans.Keep(t.Context())
	if p.store.has(content.KindSnapshot, "disk@e1-orphan") {
		t.Error("the folder was opened beside who has the volume's turn")
	}
	end()
	p.a.orphans.Keep(t.Context())
	if !p.store.has(content.KindSnapshot, "disk@e1-orphan") {
		t.Error("it has no name")
	}
}

// TestARemovedOrphanLeavesNothing: who removes the snapshot of an orphan has its folder gone,
// at once on the node that has it, be it the volume's own or one that has stepped aside, and
// when it looks where another removed it, over a start and a crash too.
func TestARemovedOrphanLeavesNothing(t *testing.T) {
	for name, elsewhere := range map[string]bool{"here": false, "elsewhere": true} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			gone := func(folder string) bool {
				_, err := os.Stat(folder)
				return errors.Is(err, fs.ErrNotExist)
			}
			for _, name := range []string{"own", "aside"} {
				p.a.put(t, name, Spec{Size: testSize})
				p.a.fill(t, name, make([]byte, testSize), 4, 1)
				e, _ := p.a.index.Get(name)
				id := strings.TrimPrefix(p.fencedOff(t, name), "snapshot:")
				folder := p.a.index.Path(e)
				if name == "aside" {
					p.a.put(t, name, Spec{Takeover: true})
					folder = p.a.index.Aside(e.ID, e.Epoch)
				}
				if gone(folder) {
					t.Fatalf("%s: there is no orphan", name)
				}
				if !elsewhere {
					if err := p.a.RemoveSnapshot(t.Context(), id); err != nil || !gone(folder) {
						t.Errorf("%s: %v, and its folder is there: %t", name, err, !gone(folder))
					}
					continue
				}
				if err := p.b.RemoveSnapshot(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				p.a = p.a.again(t)
				p.join(p.a)
				p.a.openAll(t.Context())
				if p.a.orphans.Keep(t.Context()); !gone(folder) {
					t.Errorf("%s: its folder is there", name)
				}
			}
			if _, here := p.a.index.Get("own"); here {
				t.Error("the volume that was taken is listed still")
			}
			if state := p.a.state(t, "aside"); state != terms.StateAttached {
				t.Errorf("the volume that is back is %s", state)
			}
		})
	}
}

// TestAnOrphanMeetsAnothersName: a volume that was made anew under a name leaves an orphan of
// an epoch that one of the name's earlier volume had. It is not taken for that, and gets the
// name when the other is removed.
func TestAnOrphanMeetsAnothersName(t *testing.T) {
	p := newPair(t)
	p.a.put(t, "disk", Spec{Size: testSize})
	earlier := catalog.Snapshot{Volume: "disk", Orphan: true, ID: content.VolumeID{1}, Size: testSize, Epoch: 1, Holder: p.b.cfg.Self, Created: p.a.cfg.Now()}
	if err := p.a.records().PutSnapshot(t.Context(), nil, earlier); err != nil {
		t.Fatal(err)
	}
	shadow := make([]byte, testSize)
	p.a.fill(t, "disk", shadow, 4, 1)
	id := p.fencedOff(t, "disk")
	if e, _ := p.a.index.Get("disk"); e.Orphan {
		t.Error("the orphan of another volume is taken for its own")
	}
	if err := p.a.RemoveSnapshot(t.Context(), strings.TrimPrefix(id, "snapshot:")); err != nil {
		t.Fatal(err)
	}
	p.a.orphans.Keep(t.Context())
	if !bytes.Equal(p.a.exported(t, id), shadow) {
		t.Error("the orphan has other bytes")
	}
}
