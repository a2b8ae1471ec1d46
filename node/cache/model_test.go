package cache

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// model is what a cache may say: what was put is here, with the bytes it was put with,
// and goes only if it is not pinned.
type model struct {
	ids   []content.CID // of all objects
	c     *Cache
	cfg   Config
	clock *clock
	here  map[content.CID]int // to the number of the object
	pins  map[string][]int
	rot   map[int]bool // objects whose slot is bad
	reach map[int]Reach
}

const (
	// modelQuota is below what Open takes: a slab for each class, and one.
	modelQuota = 8 * slabSize
	// modelObjects is how many objects there are; not all of them fit.
	modelObjects = 700
)

func modelObject(n int) content.Verified {
	return object(n, []int{50, 9 << 10, 16 << 10, 128 << 10, 200 << 10, 700 << 10, 1 << 20}[n%7])
}

func (m *model) open(t *rapid.T) {
	c, err := Open(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.c = c
	c.cfg.Quota = modelQuota
}

func (m *model) number(t *rapid.T) int { return rapid.IntRange(0, modelObjects-1).Draw(t, "object") }

// Put puts some objects in a row.
func (m *model) Put(t *rapid.T) {
	m.put(t, m.number(t), rapid.IntRange(1, 200).Draw(t, "count"))
}

func (m *model) put(t *rapid.T, from, n int) {
	for i := range n {
		number := (from + i) % modelObjects
		v := modelObject(number)
		was := m.c.Has(v.CID())
		reach := Reach(rapid.IntRange(0, int(ReachPublic)).Draw(t, "reach"))
		switch err := m.c.Put(v, reach); {
		case err == nil:
			m.reach[number] = max(reach, m.reach[number])
			if !was {
				m.here[v.CID()] = number
				m.reach[number] = reach
				delete(m.rot, number)
			}
		case !errors.Is(err, content.ErrNoSpace) || len(m.pins) == 0:
			t.Fatal(err)
		}
	}
}

// Read reads a range of an object, or all of it.
func (m *model) Read(t *rapid.T) {
	number := m.number(t)
	v := modelObject(number)
	b := v.Bytes()
	_, here := m.here[v.CID()]
	off := rapid.IntRange(0, len(b)).Draw(t, "offset")
	p := make([]byte, min(len(b)-off, 4096))
	err := m.c.ReadAt(v.CID(), p, off)
	if rapid.Bool().Draw(t, "whole") {
		var got content.Verified
		got, err = m.c.Get(v.CID(), nil)
		p, off = got.Bytes(), 0
	}
	switch {
	case err == nil && (!here || !m.rot[number] && !bytes.Equal(p, b[off:off+len(p)])):
		t.Fatalf("object %d, here %v: other bytes", number, here)
	case err != nil && here && !m.rot[number], err != nil && m.rot[number] && !errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrNotFound):
		t.Fatalf("object %d: %v", number, err)
	case err != nil && !here && !errors.Is(err, content.ErrNotFound):
		t.Fatal(err)
	}
}

// Pin pins some objects, there or not.
func (m *model) Pin(t *rapid.T) {
	name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")
	numbers := rapid.SliceOfN(rapid.IntRange(0, modelObjects-1), 0, 50).Draw(t, "pinned")
	if err := m.c.Pin(name, 0, func(yield func(content.CID) bool) {
		for _, n := range numbers {
			if !yield(m.ids[n]) {
				return
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	m.pins[name] = numbers
}

// Unpin ends a pin.
func (m *model) Unpin(t *rapid.T) {
	name := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name")
	if err := m.c.Unpin(name); err != nil {
		t.Fatal(err)
	}
	delete(m.pins, name)
}

// Narrow lowers the reach of some objects, there or not.
func (m *model) Narrow(t *rapid.T) {
	most := Reach(rapid.IntRange(0, int(ReachPublic)).Draw(t, "most"))
	numbers := rapid.SliceOfN(rapid.IntRange(0, modelObjects-1), 0, 50).Draw(t, "narrowed")
	var ids []content.CID
	for _, n := range numbers {
		ids = append(ids, m.ids[n])
		m.reach[n] = min(most, m.reach[n])
	}
	if err := m.c.Narrow(ids, most); err != nil {
		t.Fatal(err)
	}
}

// Rebuild kills the cache and takes its index away: all is found again by its name.
func (m *model) Rebuild(t *rapid.T) {
	m.kill(t)
	if err := os.Remove(m.c.indexPath()); err != nil {
		t.Fatal(err)
	}
	m.open(t)
}

// Evict evicts some bytes.
func (m *model) Evict(t *rapid.T) { m.c.Evict(rapid.Int64Range(1, 64<<20).Draw(t, "bytes")) }

// Rot flips a bit on disk, and starts anew: only then must it be found at once.
func (m *model) Rot(t *rapid.T) {
	number := m.number(t)
	if s, ok := m.c.look(m.c.secret.key(m.ids[number])); ok && !m.rot[number] {
		v := modelObject(number)
		f, at, _ := m.c.file(s.at, s.class)
		i := rand.IntN(len(v.Bytes()))
		if _, err := f.WriteAt([]byte{v.Bytes()[i] ^ 4}, at+int64(i)); err != nil {
			t.Fatal(err)
		}
		m.rot[number] = true
		m.Restart(t)
	}
}

// Restart closes the cache, or kills it.
func (m *model) Restart(t *rapid.T) {
	if rapid.Bool().Draw(t, "kill") {
		m.kill(t)
	} else if err := m.c.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
}

func (m *model) kill(t *rapid.T) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if err := m.c.release(); err != nil {
		t.Fatal(err)
	}
}

// Pass lets time pass.
func (m *model) Pass(t *rapid.T) {
	m.clock.pass(m.c, time.Duration(rapid.IntRange(1, 48*60).Draw(t, "minutes"))*time.Minute)
	m.c.forgetChecks()
}

// Check compares cache and model after each step.
func (m *model) Check(t *rapid.T) {
	check(t, m.c)
	for id, n := range m.here {
		if m.c.Has(id) {
			continue
		}
		for _, numbers := range m.pins {
			if slices.Contains(numbers, n) && !m.rot[n] {
				t.Fatalf("object %d is pinned, and gone", n)
			}
		}
		delete(m.here, id)
	}
	if st := m.c.Stats(); st.Chunks != int64(len(m.here)) || st.Disk > st.Quota {
		t.Fatalf("%d objects should be here: %+v", len(m.here), st)
	}
	for id, n := range m.here {
		want := m.reach[n]
		if got, ok := m.c.Reach(id); !ok || got != want || !m.c.HasFor(id, want) || want < ReachPublic && m.c.HasFor(id, want+1) {
			t.Fatalf("object %d has reach %d, want %d", n, got, want)
		}
	}
	names := m.c.Pinned()
	for name, numbers := range m.pins {
		if !slices.Contains(names, name) {
			t.Fatalf("%s is not pinned any more", name)
		}
		for _, n := range numbers {
			if s, ok := m.c.look(m.c.secret.key(m.ids[n])); ok && !s.word.pinned() {
				t.Fatalf("object %d is here, and not pinned", n)
			}
		}
	}
	if n := leaked(m.c); n > 0 {
		t.Fatalf("%d slots are taken by nothing", n)
	}
}

func TestModel(t *testing.T) {
	if err := flag.Set("rapid.checks", strconv.Itoa(4*soak.Rounds(100))); err != nil {
		t.Fatal(err)
	}
	ids := make([]content.CID, modelObjects)
	for n := range ids {
		ids[n] = modelObject(n).CID()
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{ids: ids, clock: newClock(), here: map[content.CID]int{}, pins: map[string][]int{}, rot: map[int]bool{}, reach: map[int]Reach{}}
		m.cfg = Config{Dir: t.TempDir(), Quota: quotaMin, ScrubRate: -1, Now: func() time.Time { return m.clock.now }}
		m.open(rt)
		m.put(rt, 0, rapid.IntRange(0, modelObjects).Draw(rt, "filled with"))
		defer func() { m.c.Close() }()
		rt.Repeat(map[string]func(*rapid.T){
			"Put": m.Put, "Read": m.Read, "Pin": m.Pin, "Unpin": m.Unpin, "Evict": m.Evict,
			"Narrow": m.Narrow, "Rebuild": m.Rebuild, "Rot": m.Rot, "Restart": m.Restart, "Pass": m.Pass, "": m.Check,
		})
	})
}
