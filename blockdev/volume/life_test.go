package volume

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/grangemesh/grange/origin/content"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// life is a volume through all that happens to one, what it has to read as, and what a loss
// of power may make of it.
type life struct {
	t      *rapid.T
	cfg    Config
	v      *Volume
	want   []byte
	since  [][]byte                    // want after each change since the last flush, that of the flush first
	states map[content.Position][]byte // of places that can be read
	kept   map[content.Position]int
	notes  [][]byte          // what the note was
	gone   map[string][]byte // segments that were removed and may come back
	older  map[string][]byte // what the files of segments were before they were used again
	killed []Config          // of folders as a kill would have left them
	next   int
	before bool // there was a snapshot from before the base when the volume was opened
	alone  bool // nothing goes on beside, so that a step is one moment
}

func begin(t *rapid.T, dir string) *life {
	src := newImage(sourceSize)
	cfg := smallSegments(dir, src)
	cfg.Memory = 40 << 10 // a page of the map in each half
	d := &life{t: t, cfg: cfg, kept: map[content.Position]int{}, want: blank(src), states: map[content.Position][]byte{{}: blank(src)}}
	d.since = [][]byte{slices.Clone(d.want)}
	d.open()
	return d
}

// config has what is kept.
func (d *life) config() Config {
	cfg := d.cfg
	for p, n := range d.kept {
		for range n {
			cfg.Kept = append(cfg.Kept, p)
		}
	}
	return cfg
}

func (d *life) open() {
	d.before = false
	for p := range d.kept {
		d.before = d.before || p.Seq < d.cfg.Base.Seq
	}
	v, err := Open(d.config())
	must(d.t, err)
	v.cfg.Step = d.step
	d.v, d.gone, d.older, d.notes = v, map[string][]byte{}, map[string][]byte{}, nil
	expectAny(d.t, v, d.since)
	p := make([]byte, testSize)
	must(d.t, v.ReadAt(d.t.Context(), p, 0))
	d.want, d.since = p, [][]byte{slices.Clone(p)} // an open journal is a synced one
	maps.DeleteFunc(d.states, func(p content.Position, _ []byte) bool { return d.kept[p] == 0 && p != d.cfg.Base })
}

// step copies the folder as a kill leaves it there.
func (d *life) step(name string) {
	if name == "reused" { // whoever is here has the turn
		file := journal.Header{Epoch: d.v.cfg.Epoch, Number: d.v.number + 1}.Name()
		b, err := os.ReadFile(filepath.Join(d.cfg.Dir, file))
		must(d.t, err)
		d.older[file] = b
	}
	if !d.alone || name == "append" || name == "read" {
		return
	}
	d.next++
	dir := fmt.Sprintf("%s.%s%d", d.cfg.Dir, name, d.next)
	must(d.t, os.Mkdir(dir, 0o700))
	for name, b := range files(d.t, d.cfg.Dir) {
		must(d.t, os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600))
	}
	cfg := d.config()
	cfg.Dir = dir
	d.killed = append(d.killed, cfg)
}

// afterKills opens what kills have left: nothing is lost.
func (d *life) afterKills() {
	for _, cfg := range d.killed {
		v, err := Open(cfg)
		must(d.t, err)
		expect(d.t, v, d.want, 0, testSize)
		d.expectKept(v, cfg)
		must(d.t, v.Close())
		must(d.t, os.RemoveAll(cfg.Dir))
	}
	d.killed = nil
}

func (d *life) expectAsOf(v *Volume, p content.Position) {
	got := make([]byte, testSize)
	must(d.t, v.ReadAsOf(d.t.Context(), got, 0, p))
	if !bytes.Equal(got, d.states[p]) {
		d.t.Fatalf("the disk as of %v has other bytes", p)
	}
}

func (d *life) expectKept(v *Volume, cfg Config) {
	for _, p := range cfg.Kept {
		if p.Seq >= cfg.Base.Seq {
			d.expectAsOf(v, p)
		}
	}
}

// steps does what is done in steps, each of which may be the last.
func (d *life) steps(do func()) {
	d.v.work.Wait()
	d.alone = true
	do()
	d.v.work.Wait()
	d.alone = false
}

func (d *life) changed() { d.since = append(d.since, slices.Clone(d.want)) }

// watch keeps what a loss of power may bring back.
func (d *life) watch() {
	for _, name := range segments(d.t, d.cfg.Dir) {
		if b, err := os.ReadFile(name); err == nil {
			d.gone[filepath.Base(name)] = b
		}
	}
	if b, err := os.ReadFile(filepath.Join(d.cfg.Dir, journal.NoteName)); err == nil {
		d.notes = append(d.notes, b)
	}
}

// move makes a folder as a kill leaves it, and lets go of the old one.
func (d *life) move() {
	d.v.work.Wait()
	d.next++
	dir := fmt.Sprintf("%s.%d", d.cfg.Dir, d.next)
	must(d.t, os.CopyFS(dir, os.DirFS(d.cfg.Dir)))
	must(d.t, d.v.Close())
	must(d.t, os.RemoveAll(d.cfg.Dir))
	d.cfg.Dir = dir
}

// power takes what was not synced, in any order.
func (d *life) power(t *rapid.T) {
	d.v.work.Wait()
	synced := d.v.notes.Last
	d.move()
	for _, name := range segments(t, d.cfg.Dir) {
		b, err := os.ReadFile(name)
		must(t, err)
		_, number, _ := journal.ParseName(filepath.Base(name))
		h, _ := journal.DecodeHeader(b)
		from := int64(0)
		switch {
		case number < synced.Number || h.Merged > 0: // which had no name before it was synced
			continue
		case number == synced.Number:
			from = synced.Length
		}
		if from >= int64(len(b)) {
			continue
		}
		if old := d.older[filepath.Base(name)]; len(old) > len(b) && rapid.Bool().Draw(t, "not cut yet") {
			b = append(b, old[len(b):]...)
		}
		a := rapid.Int64Range(from, int64(len(b))).Draw(t, "from")
		switch rapid.IntRange(0, 4).Draw(t, "damage") {
		case 0:
			b = b[:a]
		case 1:
			clear(b[a:rapid.Int64Range(a, int64(len(b))).Draw(t, "to")])
		case 2:
			if number > synced.Number {
				must(t, os.Remove(name))
				continue
			}
		case 3:
			copy(b[a:rapid.Int64Range(a, int64(len(b))).Draw(t, "to")], d.older[filepath.Base(name)][min(a, int64(len(d.older[filepath.Base(name)]))):])
		}
		must(t, os.WriteFile(name, b, 0o600))
	}
	for _, name := range slices.Sorted(maps.Keys(d.gone)) { // to take a name away was not synced
		path := filepath.Join(d.cfg.Dir, name)
		_, number, _ := journal.ParseName(name)
		if _, err := os.Stat(path); err != nil && number <= d.v.number && rapid.Bool().Draw(t, "back") {
			must(t, os.WriteFile(path, d.gone[name], 0o600))
		}
	}
	if len(d.notes) > 0 && rapid.Bool().Draw(t, "old note") {
		must(t, os.WriteFile(filepath.Join(d.cfg.Dir, journal.NoteName), rapid.SampledFrom(d.notes).Draw(t, "note"), 0o600))
	}
	d.open()
}

// place draws a place that can be read, behind from.
func (d *life) place(t *rapid.T, from content.Position) (content.Position, bool) {
	var all []content.Position
	for p := range d.states {
		if p.Seq >= from.Seq {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return content.Position{}, false
	}
	slices.SortFunc(all, func(a, b content.Position) int { return int(int64(a.Seq) - int64(b.Seq)) })
	return rapid.SampledFrom(all).Draw(t, "place"), true
}

func (d *life) write(r *rapid.T) {
	d.watch()
	for range rapid.IntRange(1, 12).Draw(r, "writes") {
		off := rapid.Int64Range(0, 3).Draw(r, "place") * 8 * extents.Unit // few, so that much is overwritten
		p := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(r, "byte"))}, rapid.IntRange(1, 64).Draw(r, "sectors")*extents.SectorSize)
		d.put(r, p, off)
		d.changed()
	}
}

func (d *life) put(r *rapid.T, p []byte, off int64) {
	if d.v.pressure.behind.Load() { // who tends may be late, but not for ever
		d.v.tended.Store(false)
	}
	must(r, d.v.WriteAt(r.Context(), p, off, false))
	copy(d.want[off:], p)
}

// scatter writes sectors all over the disk, so that the map is large.
func (d *life) scatter(r *rapid.T) {
	d.watch()
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(r, "seed"), 0))
	for range rapid.IntRange(100, 400).Draw(r, "writes") {
		off := rng.Int64N(testSize/extents.SectorSize) * extents.SectorSize
		p := bytes.Repeat([]byte{byte(rng.IntN(256))}, extents.SectorSize)
		d.put(r, p, off)
	}
	must(r, d.v.Flush(r.Context()))
	d.since = [][]byte{slices.Clone(d.want)}
}

func (d *life) zero(r *rapid.T) {
	off, n := rapid.Int64Range(0, 3).Draw(r, "place")*8*extents.Unit, rapid.Int64Range(1, 100).Draw(r, "sectors")*extents.SectorSize
	must(r, d.v.Zero(r.Context(), off, n, rapid.Bool().Draw(r, "keep"), false))
	clear(d.want[off : off+n])
	d.changed()
}

func (d *life) seal(r *rapid.T) {
	p, err := d.v.Seal(r.Context())
	must(r, err)
	d.since = [][]byte{slices.Clone(d.want)}
	d.states[p] = slices.Clone(d.want)
	must(r, d.v.ReadAsOf(r.Context(), make([]byte, extents.Unit), 0, p))
	if rapid.Bool().Draw(r, "keep") {
		d.kept[p]++
		return
	}
	d.letGo(p)
}

// letGo gives a place back that Seal has kept.
func (d *life) letGo(p content.Position) {
	if d.v.Release(p); d.kept[p] == 0 && p != d.cfg.Base {
		delete(d.states, p)
	}
}

func (d *life) release(r *rapid.T) {
	for _, p := range slices.SortedFunc(maps.Keys(d.kept), func(a, b content.Position) int { return int(int64(a.Seq) - int64(b.Seq)) }) {
		if rapid.Bool().Draw(r, "release") {
			if d.v.Release(p); d.kept[p] == 1 {
				delete(d.kept, p)
				if p != d.cfg.Base {
					delete(d.states, p)
				}
			} else {
				d.kept[p]--
			}
		}
	}
}

// fold makes a root of what the journal has up to a place, as a fold does, and rebases.
func (d *life) fold(r *rapid.T) {
	p, err := d.v.Seal(r.Context())
	must(r, err)
	defer d.letGo(p)
	d.states[p] = slices.Clone(d.want)
	root := newImage(sourceSize)
	old := d.cfg.Source.(*image)
	root.chunks = maps.Clone(old.chunks)
	edge := slices.Clone(root.chunks[sourceSize/testChunk]) // the new root is larger
	if d.cfg.SourceSize == sourceSize {
		clear(edge[sourceSize%testChunk:])
	}
	root.chunks[sourceSize/testChunk] = edge
	for changed, err := range d.v.Changes(d.cfg.Base, p, 0) {
		must(r, err)
		for at := changed.Offset - changed.Offset%testChunk; at < changed.Offset+changed.Length; at += testChunk {
			b := make([]byte, testChunk)
			must(r, d.v.ReadAsOf(r.Context(), b, at, p))
			root.chunks[uint64(at/testChunk)] = b
		}
	}
	for p := range d.kept {
		if p.Seq < d.cfg.Base.Seq {
			return // its root would not be known after a restart
		}
	}
	d.cfg.Source, d.cfg.SourceSize, d.cfg.Base = root, testSize, p
	must(r, d.v.Rebase(root, testSize, testChunk, p))
	maps.DeleteFunc(d.states, func(q content.Position, _ []byte) bool { return q.Seq < p.Seq && d.kept[q] == 0 })
	d.since = [][]byte{slices.Clone(d.want)}
}

// check holds the volume to its invariants.
func (d *life) check(t *rapid.T) {
	d.v.work.Wait()
	expect(t, d.v, d.want, 0, testSize)
	d.afterKills()
	d.expectKept(d.v, d.config())
	v := d.v
	v.mu.RLock()
	defer v.mu.RUnlock()
	names := map[string]bool{}
	next := v.chain
	for i, s := range next {
		info, err := os.Stat(v.path(s))
		must(t, err)
		if live := v.liveOf(s); info.Size() != s.size+s.spare() || live < 0 {
			t.Fatalf("segment %d has %d bytes, %d live, and its file %d", s.Number, s.size, live, info.Size())
		}
		if i > 0 && s.After != next[i-1].through() {
			t.Fatalf("segment %d follows %v, and the one before ends with %v", s.Number, s.After, next[i-1].through())
		}
		names[filepath.Base(v.path(s))] = true
	}
	for i, l := range v.layers {
		if i == 0 && l.through != v.open.after || i > 0 && l.through != v.layers[i-1].after || l.after.Seq >= l.through.Seq {
			t.Fatalf("layer %d is from %v to %v", i, l.after, l.through)
		}
		d.checkLayer(t, l)
		if l.disk != nil {
			names[filepath.Base(l.disk.File.Name())] = true
		}
	}
	spares := int64(0)
	for name, b := range files(t, v.cfg.Dir) {
		if strings.HasPrefix(name, journal.SparePrefix) {
			spares += int64(len(b))
			continue
		}
		if _, number, _ := journal.ParseName(name); d.before && number <= d.cfg.Base.Number {
			continue // for a snapshot whose root a start does not know
		}
		if (strings.HasSuffix(name, journal.Suffix) || strings.HasPrefix(name, ".")) && !names[name] {
			t.Fatalf("a file %s is left", name)
		}
	}
	if spares != v.spares.Bytes() || spares > sparesMax*v.cfg.SegmentSize {
		t.Fatalf("there are spares of %d bytes, counted %d", spares, v.spares.Bytes())
	}
}

// checkLayer counts what a layer uses.
func (d *life) checkLayer(t *rapid.T, l *layer) {
	var u extents.Usage
	end := uint64(0)
	next := l.from(0)
	for {
		e, ok, err := next()
		must(t, err)
		if !ok {
			break
		}
		if e.Start < end || e.N == 0 {
			t.Fatalf("extent at %d, behind one to %d", e.Start, end)
		}
		end = e.End()
		u.Account(e, 1)
	}
	for slot := range d.v.slots {
		if u.LiveIn(uint32(slot)) != l.usage().LiveIn(uint32(slot)) || u.Dirty != l.usage().Dirty {
			t.Fatalf("slot %d has %d live, counted %d", slot, u.LiveIn(uint32(slot)), l.usage().LiveIn(uint32(slot)))
		}
	}
}

// merge writes a merged segment, and reads it in another folder over what was before.
func (d *life) merge(r *rapid.T) {
	after, ok := d.place(r, d.cfg.Base)
	if !ok {
		return
	}
	through, ok := d.place(r, after)
	if !ok || after == through {
		return
	}
	if !d.there(through) || !d.there(after) { // of those that are not kept
		return
	}
	var b bytes.Buffer
	ref, err := d.v.Merge(r.Context(), &b, after, through)
	must(r, err)
	d.next++
	dir := fmt.Sprintf("%s.other%d", d.cfg.Dir, d.next)
	cfg := sourced(dir, flat(d.states[after]))
	cfg.SourceSize, cfg.Base, cfg.ID, cfg.Ancestors, cfg.Epoch = testSize, after, content.VolumeID{7}, []content.VolumeID{testID()}, 9
	must(r, Create(dir, cfg.ID))
	must(r, journal.Adopt(dir, cfg.ID, []journal.AdoptedSegment{{Ref: ref, Open: func() (io.ReadCloser, error) { return io.NopCloser(&b), nil }}}, func(string) {}))
	v, err := Open(cfg)
	must(r, err)
	expect(r, v, d.states[through], 0, testSize)
	must(r, v.WriteAt(r.Context(), make([]byte, extents.Unit), 0, true))
	if end := v.End(); end.Number != through.Number+1 {
		r.Fatalf("a fork goes on with segment %d behind %d", end.Number, through.Number)
	}
	must(r, v.Close())
	must(r, os.RemoveAll(dir))
}

func (d *life) there(p content.Position) bool {
	w, err := d.v.pinAsOf(p)
	if err == nil {
		w.readers.Done()
	}
	return err == nil
}

// flat is a root with these bytes.
func flat(b []byte) *image {
	m := &image{map[uint64][]byte{}, true}
	for i := 0; i*testChunk < len(b); i++ {
		m.chunks[uint64(i)] = slices.Clone(b[i*testChunk : (i+1)*testChunk])
	}
	return m
}

// TestLife writes, zeroes and flushes a journal of small segments, seals, keeps, folds,
// merges and compacts it, ends it cleanly, by kills at each step and by losses of power that
// take what was not synced in any order: what was flushed is there, the rest is as at one
// moment since, and what is kept reads as it was.
func TestLife(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := begin(r, create(t))
		defer func() { must(r, d.v.Close()) }()
		r.Repeat(map[string]func(*rapid.T){
			"":      d.check,
			"write": d.write, "more": d.write, "scatter": d.scatter, "zero": d.zero,
			"flush": func(r *rapid.T) {
				must(r, d.v.Flush(r.Context()))
				d.since = [][]byte{slices.Clone(d.want)}
			},
			"seal":    func(r *rapid.T) { d.steps(func() { d.seal(r) }) },
			"fold":    func(r *rapid.T) { d.steps(func() { d.fold(r) }) },
			"release": d.release, "merge": d.merge,
			"absorb": func(r *rapid.T) {
				must(r, d.v.absorb())
				d.since = [][]byte{slices.Clone(d.want)}
			},
			"tend": func(*rapid.T) { d.watch(); d.steps(d.v.tend) },
			"enter": func(*rapid.T) {
				d.v.work.Wait()
				d.cfg.Epoch++
				if d.v.Enter(d.cfg.Epoch); d.v.tail == nil { // a segment without an entry is gone for good
					maps.DeleteFunc(d.gone, func(name string, _ []byte) bool {
						_, number, _ := journal.ParseName(name)
						return number > d.v.number
					})
				}
			},
			"refused": func(r *rapid.T) { // a write that finds the disk full leaves a segment without an entry
				d.v.take()
				defer d.v.turns.pass()
				must(r, d.v.roll())
			},
			"busy": func(*rapid.T) { d.v.tended.Store(!d.v.tended.Load()) }, // what tends is late
			"stop": func(r *rapid.T) {
				must(r, d.v.Close())
				d.since = [][]byte{slices.Clone(d.want)}
				if rapid.Bool().Draw(r, "next epoch") {
					d.cfg.Epoch++
				}
				d.open()
			},
			"kill": func(r *rapid.T) {
				d.since = [][]byte{slices.Clone(d.want)}
				d.move()
				d.open()
			},
			"power": d.power, "power cut": d.power,
		})
	})
}
