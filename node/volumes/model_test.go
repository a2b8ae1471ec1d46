package volumes

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"strconv"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/grangemesh/grange/node/cache"
	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/node/volumes/terms"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/mem"
	"github.com/grangemesh/grange/simulations/soak"
)

// modelled is what a volume has to be.
type modelled struct {
	attached, committed bool
	written, released   bool
	leaving, failed     bool // whether it was released can't be told here; it is to be attached all the same
	first               byte // what its first block is full of
}

func (m modelled) state() terms.State {
	switch {
	case m.released:
		return terms.StateReleased
	case m.failed:
		return terms.StateFailed
	case !m.attached:
		return terms.StateDetached
	case !m.committed:
		return terms.StateUncommitted
	}
	return terms.StateAttached
}

// TestAnySequenceOfCommands: whatever is asked for while the mesh answers or does not,
// and over restarts, each volume is in the state that follows, its record is there if it
// was committed, and what was written to it is read.
func TestAnySequenceOfCommands(t *testing.T) {
	before := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", strconv.Itoa(soak.Of(10, 500))); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("rapid.checks", before)
	rapid.Check(t, func(rt *rapid.T) {
		home := newStore()
		w := newWorld(t)
		w.cfg.Registry = home
		defer func() { w.stop(t) }()
		all := map[string]modelled{}
		pick := rapid.SampledFrom([]string{"a", "b", "c"})
		do := func(what string, err, want error) {
			if !errors.Is(err, want) {
				rt.Fatalf("%s: %v, want %v", what, err, want)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				name := pick.Draw(rt, "name")
				m, here := all[name]
				_, created, err := w.Put(t.Context(), name, Spec{Size: 1 << 20, Transport: terms.NBD})
				if (m.released || m.leaving) && home.down { // another may have it by now
					do("put", err, content.ErrUnavailable)
					m.failed = m.leaving
					all[name] = m
					return
				}
				if do("put", err, nil); created == m.attached {
					rt.Fatalf("created is %t of %+v", created, m)
				}
				if !here {
					m.committed = !home.down
				}
				m.attached, m.released, m.leaving, m.failed = true, false, false, false
				all[name] = m
			},
			"put of another size": func(rt *rapid.T) {
				name := pick.Draw(rt, "name")
				if _, here := all[name]; here {
					_, _, err := w.Put(t.Context(), name, Spec{Size: 2 << 20})
					do("put", err, content.ErrConflict)
				}
			},
			"detach": func(rt *rapid.T) {
				name := pick.Draw(rt, "name")
				m, here := all[name]
				before, _ := w.Get(name)
				_, err := w.Detach(t.Context(), name, false)
				if !here {
					do("detach", err, content.ErrNotFound)
					return
				}
				do("detach", err, nil)
				leaves := m.attached && m.committed && !m.written
				m.released, m.leaving = m.released || leaves && !home.down, m.leaving || leaves && home.down && before.Confirmed
				m.attached, m.failed = false, false
				all[name] = m
			},
			"remove": func(rt *rapid.T) {
				name := pick.Draw(rt, "name")
				m, here := all[name]
				err := w.Remove(t.Context(), name, RemoveSpec{})
				if home.down && (!here || m.committed) { // whose the name is can't be told
					do("remove", err, content.ErrUnavailable)
					if m.attached, m.failed = false, false; here {
						all[name] = m
					}
					return
				}
				do("remove", err, nil)
				delete(all, name)
			},
			"write": func(rt *rapid.T) {
				name := pick.Draw(rt, "name")
				if m := all[name]; m.attached {
					m.first, m.written = rapid.Byte().Draw(rt, "byte"), true
					do("write", w.device(name).vol.WriteAt(t.Context(), bytes.Repeat([]byte{m.first}, 4096), 0, true), nil)
					all[name] = m
				}
			},
			"commit": func(rt *rapid.T) {
				for name, m := range all {
					if !m.committed {
						err := w.commitLater(t.Context(), name)
						if m.committed = !home.down; m.committed {
							do("commit", err, nil)
						}
						all[name] = m
					}
				}
			},
			"mesh": func(*rapid.T) { home.down = !home.down },
			"restart": func(*rapid.T) {
				w = w.again(t)
				w.cfg.Registry = home
				w.openAll(t.Context())
				for name, m := range all {
					if m.failed && !home.down {
						m.attached, m.leaving, m.failed = true, false, false
						all[name] = m
					}
				}
			},
			"": func(rt *rapid.T) {
				if list := w.List(); len(list) != len(all) {
					rt.Fatalf("%d volumes are here, want %d", len(list), len(all))
				}
				for name, m := range all {
					view, err := w.Get(name)
					if kept := home.has(content.KindVolume, name); err != nil || view.State != m.state() || kept != m.committed {
						rt.Fatalf("%s is %s (%s), has a record: %t, want %+v; %v", name, view.State, view.Detail, kept, m, err)
					}
					if !m.attached {
						continue
					}
					p := make([]byte, 4096)
					if do("read", w.device(name).vol.ReadAt(t.Context(), p, 0), nil); p[0] != m.first || p[4095] != m.first {
						rt.Fatalf("%s has %x, want %x", name, p[0], m.first)
					}
				}
			},
		})
	})
}

// shelf is a library of one image, whose packs a bucket has.
type shelf struct {
	*fetch.Fetcher
	head   pack.Head
	bucket *mem.Bucket
	made   func(content.Ref) // is told of what disks are made of, or nil
}

func (s shelf) Base(ctx context.Context, ref content.Ref) (fetch.Root, error) {
	if s.made != nil {
		s.made(ref)
	}
	return s.Stands(ctx, ref)
}

func (s shelf) Stands(_ context.Context, ref content.Ref) (fetch.Root, error) {
	if ref.Name != "debian" {
		return fetch.Root{}, content.ErrNotFound
	}
	return fetch.Root{Head: s.head}, nil
}

func (s shelf) Image(_ context.Context, r fetch.Root) (*fetch.Image, error) { return s.Open(r) }

// Live implements fetch.Members: nobody else is here.
func (shelf) Live() []peer.ID { return nil }

const imageSize = 2*content.ChunkSizeDefault + 8192

// newShelf makes an image whose chunks are full of 1, 2 and 3, read without a network.
func newShelf(t testing.TB) (s shelf) {
	t.Helper()
	bucket := mem.New(t, mem.Config{})
	s.bucket = bucket
	b, err := build.New(t.Context(), build.Config{Bucket: bucket, Scope: content.Mesh(), Size: imageSize})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		raw := make([]byte, content.ChunkSizeDefault)
		copy(raw, bytes.Repeat([]byte{byte(i + 1)}, min(len(raw), imageSize-i*len(raw))))
		err = errors.Join(err, b.Add(t.Context(), uint64(i), raw))
	}
	if err == nil {
		s.head, _, err = b.Finish(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	kept, err := cache.Open(cache.Config{Dir: t.TempDir(), Quota: 1 << 30, ScrubRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	packs := pack.NewReader(bucket)
	who := trust.Identity{Role: trust.RoleAdmin, Farm: "lyon"}
	s.Fetcher, err = fetch.New(fetch.Config{
		Cache: kept, Members: s, Origin: func() fetch.Origin { return packs }, Identity: who, Verifier: trust.NewVerifier(trust.PublicKey{}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, kept.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestVolumeOverAnImage: a volume that begins as an image reads as that, with zeros
// behind it and with what is written over it, also after a restart; the image's bytes are
// counted, and it is the image that it is of.
func TestVolumeOverAnImage(t *testing.T) {
	w := newWorld(t)
	library := newShelf(t)
	w.cfg.Library = library
	from := func(name string) content.Ref { return content.Ref{Kind: content.KindImage, Name: name} }
	put := func(spec Spec) error {
		spec.Transport = terms.NBD
		_, _, err := w.Put(t.Context(), "disk", spec)
		return err
	}
	if err := put(Spec{From: from("debian"), Size: imageSize - 4096}); !errors.Is(err, content.ErrInvalid) {
		t.Errorf("a volume that is smaller than its image: %v", err)
	}
	if err := put(Spec{From: from("absent")}); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("a volume of no image: %v", err)
	}
	if err := put(Spec{From: from("debian"), Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	for i := range imageSize {
		want[i] = byte(i/content.ChunkSizeDefault + 1)
	}
	same := func(when string) {
		t.Helper()
		got := make([]byte, len(want))
		if err := w.device("disk").vol.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s it reads otherwise: %v", when, err)
		}
	}
	same("made")
	if view, err := w.Get("disk"); err != nil || view.Bytes.Origin == 0 || view.From != from("debian") {
		t.Errorf("%+v, %v", view, err)
	}
	over := bytes.Repeat([]byte{9}, 8192)
	at := content.ChunkSizeDefault - 4096
	copy(want[at:], over)
	if err := w.device("disk").vol.WriteAt(t.Context(), over, int64(at), true); err != nil {
		t.Fatal(err)
	}
	same("written")
	for _, spec := range []Spec{{From: from("other")}, {Size: 2 << 20}} {
		if err := put(spec); !errors.Is(err, content.ErrConflict) {
			t.Errorf("it is something else than %+v: %v", spec, err)
		}
	}
	w = w.again(t)
	w.cfg.Library = library
	w.openAll(t.Context())
	same("after a restart")
	if err := w.Remove(t.Context(), "disk", RemoveSpec{}); err != nil || len(w.List()) != 0 {
		t.Errorf("it is not removed: %v", err)
	}
}

// TestImageThatCantBeOpened leaves the volume there, failed, until it can.
func TestImageThatCantBeOpened(t *testing.T) {
	w := newWorld(t)
	library := newShelf(t)
	w.cfg.Library = library
	if _, _, err := w.Put(t.Context(), "disk", Spec{From: content.Ref{Kind: content.KindImage, Name: "debian"}, Transport: terms.NBD}); err != nil {
		t.Fatal(err)
	}
	w = w.again(t) // its library has nothing
	if w.openAll(t.Context()); w.state(t, "disk") != terms.StateFailed {
		t.Errorf("it is %s", w.state(t, "disk"))
	}
	w.cfg.Library = library
	w.now = w.now.Add(tryAfterMax)
	w.serveLater(t.Context(), "disk")
	if got := w.state(t, "disk"); got != terms.StateUncommitted {
		t.Errorf("it is %s, and its image is there", got)
	}
}
