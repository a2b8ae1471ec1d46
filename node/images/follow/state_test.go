package follow

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"
)

// world carries out what a State says, in a cache of so many bytes.
type world struct {
	*State
	now      time.Time
	room     int64
	sizes    map[content.CID]int64
	cache    map[content.CID]bool // pinned
	here     map[content.CID]bool // whole
	fetching map[string]Target
	fetches  map[content.CID]int
}

func newWorld(room int64) *world {
	w := &world{State: New("self", nil), now: time.Unix(1e9, 0), room: room, sizes: map[content.CID]int64{}, cache: map[content.CID]bool{}, here: map[content.CID]bool{}, fetching: map[string]Target{}, fetches: map[content.CID]int{}}
	w.tell(Event{Kind: Looked, Members: 12, Room: room})
	return w
}

func root(n int) content.CID { return content.Sum([]byte{byte(n), byte(n >> 8)}) }

func (w *world) target(name string, version uint64, n int, size int64) Target {
	w.sizes[root(n)] = size
	return Target{Name: name, Kind: content.KindTag, Version: version, Root: root(n), Bytes: size}
}

func (w *world) pinned() (bytes int64) {
	for id := range w.cache {
		bytes += w.sizes[id]
	}
	return bytes
}

func (w *world) tell(e Event) {
	for _, a := range w.Step(w.now, e) {
		switch a.Kind {
		case Fetch:
			w.fetching[a.Target.Name] = a.Target
			w.fetches[a.Target.Root]++
		case Stop:
			delete(w.fetching, a.Target.Name)
		case Release:
			delete(w.cache, a.Root)
		}
	}
	for name, t := range maps.Clone(w.fetching) { // what is to be fetched is pinned at once, or there is no room
		if w.cache[t.Root] || w.pinned()+w.sizes[t.Root] <= w.room {
			w.cache[t.Root] = true
			continue
		}
		delete(w.fetching, name)
		w.tell(Event{Kind: Ended, Target: t, Full: true, Why: "no room"})
	}
}

func (w *world) end(name, why string) {
	t, ok := w.fetching[name]
	if !ok {
		return
	}
	delete(w.fetching, name)
	if why == "" {
		w.here[t.Root] = true
	}
	w.tell(Event{Kind: Ended, Target: t, Why: why})
}

// run lets time pass and all fetches succeed until nothing is left to do.
func (w *world) run() {
	for {
		if len(w.fetching) > 0 {
			w.end(slices.Min(slices.Collect(maps.Keys(w.fetching))), "")
			continue
		}
		at := w.Next(w.now)
		if at.IsZero() {
			return
		}
		w.now = at
		w.tell(Event{Kind: Woke})
	}
}

func (w *world) phase(t *testing.T, name string, want Phase) Standing {
	t.Helper()
	v, _ := w.Standing(name)
	if v.State != want {
		t.Errorf("%s is %s (%s), want %s", name, v.State, v.Why, want)
	}
	return v
}

// TestOldVersionStaysUntilTheNewOneIsWhole and not longer, through failures too.
func TestOldVersionStaysUntilTheNewOneIsWhole(t *testing.T) {
	w := newWorld(100)
	w.tell(Event{Kind: Stands, Target: w.target("tag", 1, 1, 10)})
	w.phase(t, "tag", Waiting)
	w.run()
	w.phase(t, "tag", Warm)
	w.tell(Event{Kind: Stands, Target: w.target("tag", 2, 2, 10)})
	if v := w.phase(t, "tag", Waiting); !v.Older {
		t.Error("what is here of the version before is not spoken of")
	}
	for _, why := range []string{"nobody has it", "the origin is away", "again"} {
		for len(w.fetching) == 0 {
			w.now = w.Next(w.now)
			w.tell(Event{Kind: Woke})
		}
		w.end("tag", why)
		w.phase(t, "tag", Failed)
		if !w.cache[root(1)] {
			t.Fatal("the old version was released")
		}
	}
	w.tell(Event{Kind: Told, Target: Target{Name: "tag"}})
	w.phase(t, "tag", Fetching)
	w.tell(Event{Kind: Stands, Target: w.target("tag", 3, 3, 10)}) // while 2 is fetched
	w.run()
	if !maps.Equal(w.cache, map[content.CID]bool{root(3): true}) {
		t.Errorf("kept: %v", w.cache)
	}
	w.tell(Event{Kind: Stands, Target: w.target("tag", 2, 2, 10)}) // older, as of a store that was rolled back
	w.run()
	if v, _ := w.Standing("tag"); v.Version != 3 || !w.cache[root(3)] {
		t.Errorf("%+v", v)
	}
	w.tell(Event{Kind: Gone, Target: Target{Name: "tag"}})
	if len(w.cache) > 0 {
		t.Errorf("kept of a name that was deleted: %v", w.cache)
	}
}

// TestTwoNamesOfOneRoot: it is kept as long as one of them stands for it.
func TestTwoNamesOfOneRoot(t *testing.T) {
	w := newWorld(100)
	w.tell(Event{Kind: Stands, Target: w.target("image", 1, 1, 10)})
	w.tell(Event{Kind: Stands, Target: w.target("tag", 1, 1, 10)})
	w.run()
	w.tell(Event{Kind: Stands, Target: w.target("tag", 2, 2, 10)})
	w.run()
	if !w.cache[root(1)] || !w.cache[root(2)] {
		t.Errorf("kept: %v", w.cache)
	}
	w.tell(Event{Kind: Gone, Target: Target{Name: "image"}})
	if w.cache[root(1)] || !w.cache[root(2)] {
		t.Errorf("kept: %v", w.cache)
	}
}

// TestNoRoomForAll: whole images, the first ones, whatever order chance has them begin in;
// what does not fit is said, and not tried again and again.
func TestNoRoomForAll(t *testing.T) {
	w := newWorld(35)
	for i := range 6 {
		target := w.target(fmt.Sprint("image", i), 1, i, 10)
		target.Rank = i / 2
		w.tell(Event{Kind: Stands, Target: target})
	}
	w.run()
	for i := range 6 {
		want := Warm
		if i > 2 {
			want = NoRoom
		}
		if v := w.phase(t, fmt.Sprint("image", i), want); want == NoRoom && v.Why == "" {
			t.Error("it does not say why")
		}
	}
	before := maps.Clone(w.fetches)
	for range 100 {
		w.tell(Event{Kind: Looked, Members: 12, Room: w.room})
		w.run()
	}
	if !maps.Equal(before, w.fetches) {
		t.Errorf("fetched again and again: %v, then %v", before, w.fetches)
	}
	w.tell(Event{Kind: Gone, Target: Target{Name: "image1"}})
	w.run()
	w.phase(t, "image3", Warm)
	w.room = 100
	w.tell(Event{Kind: Looked, Members: 12, Room: w.room})
	w.run()
	w.phase(t, "image5", Warm)
}

// TestRestart: what an earlier run has kept is gone on with at once, and what nothing
// stands for any more is let go when all is here, not before.
func TestRestart(t *testing.T) {
	w := newWorld(100)
	w.State = New("self", []content.CID{root(1), root(2), root(9)})
	w.cache = map[content.CID]bool{root(1): true, root(2): true, root(9): true}
	w.tell(Event{Kind: Stands, Target: w.target("a", 1, 1, 10)})
	w.phase(t, "a", Fetching)
	w.tell(Event{Kind: Stands, Target: w.target("b", 5, 3, 10)}) // which stood for 2
	w.end("a", "")
	w.tell(Event{Kind: Looked, Members: 12, Room: 100})
	if len(w.cache) != 3 {
		t.Errorf("kept before b is whole: %v", w.cache)
	}
	w.run()
	if !maps.Equal(w.cache, map[content.CID]bool{root(1): true, root(3): true}) {
		t.Errorf("kept: %v", w.cache)
	}
}

// TestDelays are spread over a window that grows with the mesh, and do not change.
func TestDelays(t *testing.T) {
	for _, members := range []int{1, 12, 1000, 10000} {
		window := min(windowMax, time.Duration(members)*windowEach)
		var quarters [4]int
		for i := range 1000 {
			d := Delay(fmt.Sprint("node", i), "tag", 3, members)
			if d < 0 || d >= window || d != Delay(fmt.Sprint("node", i), "tag", 3, members) {
				t.Fatalf("%s of %s", d, window)
			}
			quarters[d*4/window]++
		}
		if slices.Min(quarters[:]) < 180 {
			t.Errorf("%d members: %v", members, quarters)
		}
	}
}

// TestFollowing: whatever happens in whatever order, no more is fetched at once than may
// be, what is whole is kept until its successor is, and in the end all that names stand for
// is here and nothing else.
func TestFollowing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.Int64Range(0, 60).Draw(t, "room"))
		stands := map[string]Target{}
		version := uint64(0)
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "name")
			held := map[string]content.CID{}
			for n, e := range w.names {
				if e.whole != (content.CID{}) {
					held[n] = e.whole
				}
			}
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0, 1:
				version++
				n := rapid.IntRange(1, 8).Draw(t, "root")
				stands[name] = w.target(name, version, n, int64(n)*3)
				w.tell(Event{Kind: Stands, Target: stands[name]})
			case 2:
				delete(stands, name)
				w.tell(Event{Kind: Gone, Target: Target{Name: name}})
			case 3:
				w.end(name, "")
			case 4:
				w.end(name, "failed")
			case 5:
				w.tell(Event{Kind: Told, Target: Target{Name: name}})
			case 6:
				w.now = w.now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
				w.tell(Event{Kind: Looked, Members: 12, Room: w.room})
			}
			if len(w.fetching) > fetchesMax {
				t.Fatalf("%d at once", len(w.fetching))
			}
			for n, id := range held {
				if e := w.names[n]; e != nil && e.whole == id && !w.cache[id] {
					t.Fatalf("%s was let go before its successor is whole", n)
				}
			}
		}
		w.run()
		all := map[content.CID]bool{}
		bytes := int64(0)
		for _, target := range stands {
			if !all[target.Root] {
				bytes += target.Bytes
			}
			all[target.Root] = true
		}
		for name := range stands {
			v, _ := w.Standing(name)
			if v.State != Warm && v.State != NoRoom {
				t.Fatalf("%s ends as %s", name, v.State)
			}
			if v.State != Warm && bytes <= w.room && !slices.ContainsFunc(w.Standings(), func(v Standing) bool { return v.Older }) {
				t.Fatalf("%s is %s, and all takes %d of %d", name, v.State, bytes, w.room)
			}
			if e := w.names[name]; v.State == Warm && !w.cache[e.Root] {
				t.Fatalf("%s is warm and not kept", name)
			}
		}
		for id := range w.cache {
			needed := all[id]
			for _, e := range w.names {
				needed = needed || e.whole == id
			}
			if !needed {
				t.Fatalf("%s is kept for nothing", id)
			}
		}
	})
}
