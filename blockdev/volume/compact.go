package volume

import (
	"cmp"
	"errors"
	"os"
	"slices"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// slackSegments is how many full segments the journal may take beside twice what lives
	// in it: 256 MiB. Compaction begins at half of that, so that it is done before.
	slackSegments = 4
	// smallMax is how many small segments a journal may have before they are joined.
	smallMax = 16
)

// tendSoon has somebody tend the journal beside, unless it is closed: Close waits for all who have begun by then. Called with the turn, or mu.
func (v *Volume) tendSoon() {
	if v.closed || v.cfg.ReadOnly || !v.tended.CompareAndSwap(false, true) {
		return
	}
	v.work.Go(func() {
		v.tended.Store(false) // who asks from now on may find that this one has not seen it
		v.tend()
	})
}

// tend keeps the map within its memory and the journal within its space.
func (v *Volume) tend() {
	v.tending.Lock()
	defer v.tending.Unlock()
	v.Yield()
	v.spares.Warm()
	v.letGo()
	err := v.joinLayers()
	for gained := true; err == nil && gained && v.wants(); {
		if err = v.absorb(); err == nil {
			err = v.joinLayers()
		}
		if err == nil {
			gained, err = v.compact()
		}
	}
	if err != nil && !errors.Is(err, content.ErrClosed) {
		v.cfg.Log.Warn("a volume's journal can't be made smaller now; it is tried again", "dir", v.cfg.Dir, "err", err)
	}
}

// space is what the journal takes, and what of it is needed at least, in bytes: of layers
// that are to be joined the newer may hide all of the older. Called with mu.
func (v *Volume) space() (taken, live int64) {
	for _, s := range v.chain {
		taken += s.size
	}
	group, above := v.open.usage().Bytes, v.open
	for _, l := range v.layers {
		if !v.joins(above) {
			live, group = live+group, 0
		}
		group, above = max(group, l.usage().Bytes), l
	}
	return taken, live + group
}

// based reports whether a root has all up to just there. Called with mu.
func (v *Volume) based(p content.Position) bool {
	for g := v.ground; g != nil; g = g.older {
		if g.base == p {
			return true
		}
	}
	return false
}

// absorb freezes the open layer, all of it synced, so that what it has overwritten shows.
func (v *Volume) absorb() error {
	v.take()
	if err := v.writable(); err != nil {
		v.turns.pass()
		return err
	}
	v.endTail()
	v.mu.Lock()
	v.freezeAt(v.position())
	v.mu.Unlock()
	v.turns.pass()
	return v.flush(everything)
}

// joinLayers makes one of neighbouring layers between which no position is kept, and spills what is too much for the memory.
func (v *Volume) joinLayers() error {
	for {
		v.mu.RLock()
		layers, closed := v.layers, v.closed
		i := v.joint()
		v.mu.RUnlock()
		if closed {
			return content.ErrClosed
		}
		if i < 0 {
			break
		}
		newer, older := layers[i], layers[i+1]
		joined, err := v.build(older.after, newer.through, extents.Overlay(newer.from(0), older.from(0)), v.memory(newer, older))
		if err == nil {
			err = v.exchange(joined, newer, older)
		}
		if err != nil {
			return err
		}
	}
	return v.spill()
}

// joint is the first layer that can be joined with the one under it, or -1. Called with mu.
func (v *Volume) joint() int {
	return slices.IndexFunc(v.layers[:max(len(v.layers)-1, 0)], v.joins)
}

// joins reports whether a layer can be joined with one under it. Called with mu.
func (v *Volume) joins(l *layer) bool { return v.kept[l.after] == 0 && !v.based(l.after) }

// memory is what of it a layer may take that replaces others. Called with tending.
func (v *Volume) memory(replaced ...*layer) int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	room := v.cfg.Memory / 2
	for _, l := range v.layers {
		if !slices.Contains(replaced, l) {
			room -= l.bytes()
		}
	}
	return room
}

// spill writes the largest layers to the disk until the others fit into the memory.
func (v *Volume) spill() error {
	for v.memory() < 0 {
		var largest *layer
		v.mu.RLock()
		for _, l := range v.layers {
			if l.mem != nil && (largest == nil || l.bytes() > largest.bytes()) {
				largest = l
			}
		}
		v.mu.RUnlock()
		if largest == nil {
			return nil
		}
		l, err := v.build(largest.after, largest.through, largest.from(0), 0)
		if err == nil {
			err = v.exchange(l, largest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// exchange puts a layer in the place of others, unless a position between those has come to be kept.
func (v *Volume) exchange(now *layer, before ...*layer) error {
	v.mu.Lock()
	i := slices.Index(v.layers, before[0])
	if v.closed || len(before) > 1 && !v.joins(before[0]) {
		v.mu.Unlock()
		return now.drop()
	}
	v.layers = slices.Replace(slices.Clone(v.layers), i, i+len(before), now)
	v.retire(nil, before)
	return nil
}

// wants reports whether the journal is to be made smaller.
func (v *Volume) wants() bool {
	pressed := v.pressed()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.weigh()
	if v.closed || v.failed != nil {
		return false
	}
	taken, live := v.space()
	many := int64(len(v.chain)) > smallMax+4*taken/v.cfg.SegmentSize
	return many || v.open.bytes() > v.cfg.Memory/2 || taken > allowed(live, v.cfg.SegmentSize, pressed)+v.cfg.SegmentSize*slackSegments/4
}

// allowed is what a journal may take after compaction.
func allowed(live, segment int64, pressed bool) int64 {
	if pressed {
		return live + live/8
	}
	return 2*live + segment
}

func (v *Volume) pressed() bool { return v.cfg.Free != nil && v.cfg.Free() < compactBelow }

// run is neighbouring segments that become one.
type run struct {
	segments []*segment
	live     int64
	merger   *journal.Merger
	into     *segment
}

// choose picks the segments of a layer that are the deadest, to free excess bytes, and small ones, where they are many.
func choose(segments []*segment, live map[*segment]int64, size, excess int64) (runs []*run) {
	small := 0
	for _, s := range segments {
		if s.size < size/2 {
			small++
		}
	}
	byDeath := slices.SortedFunc(slices.Values(segments), func(a, b *segment) int {
		return cmp.Compare(live[a]*b.size>>10, live[b]*a.size>>10)
	})
	chosen := map[*segment]bool{}
	for _, s := range byDeath {
		if gain := s.size - live[s] - journal.HeaderSize; gain > 0 && (excess > 0 || live[s] == 0) {
			chosen[s], excess = true, excess-gain
		}
	}
	if small > smallMax {
		for _, s := range segments {
			chosen[s] = chosen[s] || s.size < size/2
		}
	}
	var open *run
	most := min(size, journal.MergedMax*extents.EntryHeader) // of live bytes: no more ranges than one may have
	for _, s := range segments {
		if !chosen[s] {
			open = nil
			continue
		}
		if open == nil || open.live+live[s] > most || s.After.Number != open.segments[len(open.segments)-1].Number { // neighbours alone: what lies between would be lost
			open = new(run)
			runs = append(runs, open)
		}
		open.segments, open.live = append(open.segments, s), open.live+live[s]
	}
	return slices.DeleteFunc(runs, func(r *run) bool { // nothing would come of it
		one := len(r.segments) == 1
		return one && (r.live == 0 && r.segments[0].Merged > 0 || r.segments[0].size-r.live <= journal.HeaderSize+journal.TableHeader+journal.TableFooter+r.live/8)
	})
}

// compact rewrites the deadest segments of each layer. What it writes meanwhile is a part of
// what the journal takes, and so bounded; tend comes again, unless there was nothing to do.
func (v *Volume) compact() (gained bool, err error) {
	pressed := v.pressed()
	v.mu.RLock()
	layers := v.layers
	live := map[*segment]int64{}
	for _, s := range v.chain {
		live[s] = v.liveOf(s)
	}
	taken, needed := v.space()
	own := make([][]*segment, len(layers))
	for i, l := range layers {
		own[i] = v.settledOf(l)
	}
	v.mu.RUnlock()
	excess := taken - allowed(needed, v.cfg.SegmentSize, pressed)
	for i, l := range layers {
		runs := choose(own[i], live, v.cfg.SegmentSize, excess)
		room := max(v.cfg.SegmentSize, taken/32)
		n := 0
		for ; n < len(runs) && (n == 0 || room >= runs[n].live); n++ {
			room -= runs[n].live
		}
		if n > 0 {
			if err := v.rewrite(l, runs[:n]); err != nil {
				return gained, err
			}
			gained = true
		}
	}
	return gained, nil
}

// settledOf returns the segments of a layer that may be rewritten: none while what makes its
// entries dead may be lost yet, and none that holders lack. Called with mu.
func (v *Volume) settledOf(l *layer) (own []*segment) {
	if slices.ContainsFunc(v.chain, func(s *segment) bool { return !s.synced && s.After.Seq < l.through.Seq }) {
		return nil
	}
	for _, s := range v.chain {
		if s.sealed && s.synced && s.After.Seq >= l.after.Seq && s.last <= min(l.through.Seq, v.held.Load()) {
			own = append(own, s)
		}
	}
	return own
}

// rewrite makes one segment of each run of a layer's, and the layer anew. The new one
// takes the name of the last of its run, which is one step: from there on its header says
// that it stands for the others too, and they are removed here or by the next start.
func (v *Volume) rewrite(l *layer, runs []*run) (err error) {
	defer func() {
		for _, r := range runs {
			if err == nil || r.into == nil {
				continue
			}
			v.vacate(r.into)
			if err = errors.Join(err, r.into.file.Close()); !r.into.sealed {
				err = errors.Join(err, os.Remove(r.into.file.Name()))
			}
		}
	}()
	for _, r := range runs {
		if err := v.begin(r, l.through.Seq); err != nil {
			return err
		}
	}
	moved, err := v.copyLive(l, runs)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, moved.drop())
		}
	}()
	for _, r := range runs {
		if err = r.merger.Finish(); err == nil {
			err = journal.DataSync(r.into.file)
		}
		if err != nil {
			return err
		}
		r.into.size = r.merger.Off
	}
	v.cfg.Step("copied")
	return v.replace(l, moved, runs)
}

// begin makes the file of a run's segment.
func (v *Volume) begin(r *run, needs uint64) error {
	first, last := r.segments[0], r.segments[len(r.segments)-1]
	f, err := os.CreateTemp(v.cfg.Dir, journal.MergePrefix+"*")
	if err != nil {
		return err
	}
	h := last.Header
	h.After, h.Merged, h.Needs = first.After, last.last, needs
	r.into = &segment{Header: h, seed: journal.Seed(h.Volume, h.Number), file: f, last: last.last}
	v.mu.Lock()
	r.into.slot = v.place(r.into)
	v.mu.Unlock()
	r.merger, err = journal.NewMerger(h, f)
	return err
}

// copyLive copies what a layer needs of the runs' segments, and returns the layer that it becomes.
func (v *Volume) copyLive(l *layer, runs []*run) (*layer, error) {
	of := map[uint32]*run{}
	for _, r := range runs {
		for _, s := range r.segments {
			of[s.slot] = r
		}
	}
	v.mu.RLock()
	slots := v.slots
	v.mu.RUnlock()
	all := l.from(0)
	return v.build(l.after, l.through, func() (extents.Extent, bool, error) {
		e, ok, err := all()
		if r := of[e.Seg]; ok && err == nil && r != nil {
			if e, err = v.move(r.merger, slots, e); err == nil {
				e.Seg = r.into.slot
			}
		}
		return e, ok, err
	}, v.memory(l))
}

// replace gives the runs' new segments their names, and the layer its place.
func (v *Volume) replace(l, moved *layer, runs []*run) error {
	for i, r := range runs {
		if err := os.Rename(r.into.file.Name(), v.path(r.into)); err != nil {
			if i > 0 { // what has its name already stands; the next start goes on from there
				v.mu.Lock()
				defer v.mu.Unlock()
				return v.fail(err)
			}
			return err
		}
		r.into.sealed, r.into.synced, r.segments[len(r.segments)-1].shadowed = true, true, true
	}
	v.cfg.Step("renamed")
	if err := v.stopped(durable.SyncDir(v.cfg.Dir)); err != nil {
		return err // what was merged stands beside what it was made of
	}
	v.cfg.Step("synced")
	v.mu.Lock()
	var dead []*segment
	for _, r := range runs {
		i := slices.Index(v.chain, r.segments[0])
		r.segments[len(r.segments)-1].replaced = true
		v.pressure.freed.Add(-r.into.size)
		v.chain = slices.Replace(slices.Clone(v.chain), i, i+len(r.segments), r.into)
		dead = append(dead, r.segments...)
	}
	i := slices.Index(v.layers, l)
	v.layers = slices.Replace(slices.Clone(v.layers), i, i+1, moved)
	v.retire(dead, []*layer{l})
	return nil
}
