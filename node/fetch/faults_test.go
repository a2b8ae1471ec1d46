package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/grangemesh/grange/node/fetch"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/p2p/exchange"
	"github.com/grangemesh/grange/p2p/swarm"
)

// liar claims to have everything, and sends other chunks than those asked for. Its
// map is right.
type liar struct{ exchange.Server }

func (l liar) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	if req.Level > 0 {
		l.Server.Want(ctx, from, req, w)
		return
	}
	for _, index := range req.Indexes {
		if w.Data(ctx, index, exchange.Object{Body: make([]byte, content.ChunkSizeDefault)}) != nil {
			return
		}
	}
}

func (l liar) Bitmaps(ctx context.Context, _ exchange.Peer, _ content.CID, send func(*content.Bitmap) error) error {
	var all content.Bitmap
	for i := range uint64(imageChunks) {
		all.Add(i)
	}
	if err := send(&all); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// lying starts a member that lies.
func (w *world) lying(farm string) *node {
	return w.enter(farm, trust.RoleNode, nil, func(s exchange.Server) exchange.Server { return liar{s} })
}

// isAside reports whether a member is passed over.
func (m *node) isAside(other *node) bool {
	_, aside := m.Aside()[other.id]
	return aside
}

// isBanned reports whether a member is banned.
func (m *node) isBanned(other *node) bool {
	_, banned := m.banned.Load(other.id)
	return banned
}

// TestLiarOfTheFarmIsSetAside: readers get right bytes from elsewhere, and a member
// of the farm is not banned: it is the operator's own.
func TestLiarOfTheFarmIsSetAside(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	m, liar := w.join("north", nil), w.lying("north")
	w.check(readAll(t.Context(), m.open(im), im))
	if !m.isAside(liar) {
		t.Error("the liar was not set aside")
	}
	if m.isBanned(liar) {
		t.Error("a member of the farm was banned")
	}
}

// TestLiarElsewhereIsBanned at its first lie.
func TestLiarElsewhereIsBanned(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: imageChunks})
	m, liar := w.join("north", nil), w.lying("south")
	w.check(liar.Announce(swarm.KeyFor(im.Head.Scope, im.id, w.secret)))
	g := m.open(im)
	m.open(im).Prepare(t.Context())
	w.eventually("it shows what it claims to have", func() bool { return m.Shown(im.id)[liar.id] > 0 })
	w.check(readAll(t.Context(), g, im))
	if !m.isBanned(liar) {
		t.Error("the liar was not banned")
	}
}

// mapped counts the requests for map nodes.
type mapped struct {
	exchange.Server
	asked atomic.Int64
}

func (m *mapped) Want(ctx context.Context, from exchange.Peer, req exchange.Request, w exchange.Responder) {
	if req.Level > 0 {
		m.asked.Add(1)
	}
	m.Server.Want(ctx, from, req, w)
}

// TestOtherPageIsPassedOver: who imported the same content on its own has the same
// map in other packs. Its pages are of no use, and no lie; its chunks are good.
func TestOtherPageIsPassedOver(t *testing.T) {
	for name, farm := range map[string]string{"of the farm": "north", "elsewhere": "south"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			mine := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves})
			theirs := w.publish(imageConfig{chunks: imageChunks, hole: twoLeaves})
			if mine.id != theirs.id || mine.Head.Page.CID == theirs.Head.Page.CID {
				t.Fatal("want the same root with another page")
			}
			var maps mapped
			other := w.enter(farm, trust.RoleNode, nil, func(s exchange.Server) exchange.Server { maps.Server = s; return &maps })
			w.warmAll(theirs, other)
			w.check(other.open(theirs).Hold(t.Context()))
			w.announcedBy(theirs, 1)
			m := w.join("north", nil)
			g := m.open(mine)
			m.open(mine).Prepare(t.Context())
			w.eventually("the other shows what it has", func() bool { return m.Shown(mine.id)[other.id] == mine.stats.Chunks })
			w.forget()
			w.check(readAll(t.Context(), g, mine))
			if maps.asked.Load() == 0 {
				t.Error("the other was not asked for the map")
			}
			w.copies(mine, 0.05) // the map
			if m.isAside(other) || m.isBanned(other) {
				t.Errorf("who has other pages is set aside: %t, banned: %t", m.isAside(other), m.isBanned(other))
			}
		})
	}
}

// TestFlippedBytesInTheCache: a chunk that rots on disk is fetched again, it alone.
func TestFlippedBytesInTheCache(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 64})
	m := w.join("north", nil)
	g := m.open(im)
	w.check(g.Warm(t.Context(), nil))
	files, err := filepath.Glob(filepath.Join(m.dir, "slabs-*"))
	w.check(err)
	damaged := 0
	for _, name := range files {
		b, err := os.ReadFile(name)
		w.check(err)
		if at := bytes.Index(b, im.chunks[0][:64]); at >= 0 {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			w.check(err)
			_, err = f.WriteAt([]byte{^b[at]}, int64(at))
			w.check(errors.Join(err, f.Close()))
			damaged++
		}
	}
	if damaged == 0 {
		t.Fatal("the chunk was not found in the files of the cache")
	}
	// Get hashes whole; the cheap reads do so once a day, and after a start.
	if _, err := m.cache.Get(content.Seal(im.chunks[0]).CID(), nil); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("the damage was not found: %v", err)
	}
	w.forget()
	w.check(readAll(t.Context(), g, im))
	if n := w.gets.Load(); n != 1 {
		t.Errorf("%d requests for one chunk", n)
	}
	w.copies(im, 0.05)
}

// TestFlippedBytesAtTheOrigin: the chunk that is damaged there fails, with the name
// of its pack; those of the same run don't.
func TestFlippedBytesAtTheOrigin(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 32})
	m := w.join("north", nil)
	g := m.open(im)
	const bad = 5
	at, err := m.Locate(t.Context(), im.id, bad)
	w.check(err)
	w.hooks.flip.Store(&at)
	p := make([]byte, content.ChunkSizeDefault)
	for i := range im.chunks {
		err := readOne(t.Context(), g, im, i, p)
		switch {
		case i != bad && err != nil:
			t.Error(err)
		case i == bad && (!errors.Is(err, content.ErrCorrupt) || !strings.Contains(err.Error(), string(at.Pack))):
			t.Errorf("got %v, want ErrCorrupt that names pack %s", err, at.Pack)
		}
	}
}

// TestWarmSaysFromWhere its bytes come.
func TestWarmSaysFromWhere(t *testing.T) {
	w := newWorld(t)
	im := w.publish(imageConfig{chunks: 64})
	w.warmAll(im, w.join("north", nil))
	m := w.join("north", nil)
	g := m.open(im)
	for _, from := range []fetch.Source{fetch.FromFarm, fetch.FromCache} {
		got := map[fetch.Source]int{}
		w.check(g.Warm(t.Context(), func(s fetch.Source, n int) { got[s] += n }))
		if len(got) != 1 || got[from] != int(im.stats.RawBytes) {
			t.Errorf("bytes by source: %v; want %d from the %s alone", got, im.stats.RawBytes, from)
		}
	}
}
