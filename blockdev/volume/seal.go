package volume

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/journal"
	"github.com/grangemesh/grange/blockdev/volume/root"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

// Seal ends the open segment, if it has entries, and freezes its layer, and returns the
// place once all up to it is durable here. It copies nothing. The place is kept, as if by a
// call of Keep: who does not need it any more calls Release.
func (v *Volume) Seal(context.Context) (content.Position, error) {
	v.take()
	if err := v.writable(); err != nil {
		v.turns.pass()
		return content.Position{}, fmt.Errorf("seal: %w", err)
	}
	v.endTail()
	v.mu.Lock()
	p := v.position()
	v.kept[p]++
	v.freezeAt(p)
	v.mu.Unlock()
	v.turns.pass()
	v.cfg.Step("ended")
	if err := v.flush(everything); err != nil {
		v.Release(p)
		return content.Position{}, fmt.Errorf("seal: %w", err)
	}
	return p, nil
}

// Enter has what is written from now on be of a later epoch, in a segment of its own.
func (v *Volume) Enter(epoch uint64) {
	v.syncing.Lock() // no sync has the file in hand that may go
	defer v.syncing.Unlock()
	v.take()
	defer v.turns.pass()
	v.endTail()
	v.mu.Lock()
	v.cfg.Epoch = max(v.cfg.Epoch, epoch)
	s := v.tail
	if s == nil || s.Epoch == v.cfg.Epoch || v.closed {
		v.mu.Unlock()
		return
	}
	v.chain, v.tail, v.number = slices.Clone(v.chain[:len(v.chain)-1]), nil, s.After.Number // it has no entry yet
	v.mu.Unlock()
	// Its number is going to be another one's: it is gone for good before.
	if err := errors.Join(s.file.Close(), os.Remove(v.path(s)), durable.SyncDir(v.cfg.Dir)); err != nil {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.failed = fmt.Errorf("the journal has a segment of an epoch that is over, and it can't be removed: %w", err)
	}
}

// freezeAt ends the open layer where the journal ends. Called with mu and the turn.
func (v *Volume) freezeAt(p content.Position) {
	if v.open.after == p {
		return
	}
	v.open.through = p
	v.layers = append([]*layer{v.open}, v.layers...)
	v.open = newLayer(p)
}

// position is where the journal ends. Called with mu, or the turn.
func (v *Volume) position() content.Position {
	if v.tail != nil && v.tail.empty() {
		return v.tail.After
	}
	return content.Position{Number: v.number, Seq: v.seq}
}

// End returns the position of all that was written by now.
func (v *Volume) End() content.Position {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.position()
}

// Sealed returns the segments behind the base that nothing is added to, oldest first, without
// their sums. The file of one may go unless a position behind it is kept.
func (v *Volume) Sealed() (out []journal.AdoptedSegment) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, s := range v.chain {
		if s != v.tail && s.Number > v.ground.base.Number {
			ref := content.SegmentRef{Volume: s.Volume, Epoch: s.Epoch, After: s.After, Through: s.through(), Bytes: s.size}
			out = append(out, journal.AdoptedSegment{Ref: ref, Path: v.path(s)})
		}
	}
	return out
}

// liveOf is how many bytes the parts of a segment's entries that are in use need: more than it has, where those are many. Called with mu.
func (v *Volume) liveOf(s *segment) int64 {
	live := v.open.usage().LiveIn(s.slot)
	for _, l := range v.layers {
		live += l.usage().LiveIn(s.slot)
	}
	return live
}

// Keep has a position stay readable until as many calls of Release as of Keep and Seal: layers are not joined
// across it, and its segments stay. ErrNotFound means that no layer ends there any more.
func (v *Volume) Keep(p content.Position) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.asOf(p); !ok {
		return v.gone(p)
	}
	v.kept[p]++
	return nil
}

func (v *Volume) gone(p content.Position) error {
	return fmt.Errorf("position %d of volume %s: %w: the journal has no such place, or did not keep it", p.Seq, v.cfg.ID, content.ErrNotFound)
}

// Release gives a position back that Keep or Seal has kept.
func (v *Volume) Release(p content.Position) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.kept[p]--; v.kept[p] <= 0 {
		delete(v.kept, p)
		v.tendSoon()
	}
}

// pinAsOf returns the view of a position, whose files stay until its readers are Done.
func (v *Volume) pinAsOf(p content.Position) (view, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		return view{}, content.ErrClosed
	}
	w, ok := v.asOf(p)
	if !ok {
		return view{}, v.gone(p)
	}
	w.readers.Add(1)
	return w, nil
}

// ReadAsOf fills p from off of the disk as it was at a position that is kept, or the base.
func (v *Volume) ReadAsOf(ctx context.Context, p []byte, off int64, through content.Position) error {
	w, err := v.pinAsOf(through)
	if err != nil {
		return fmt.Errorf("read at %d: %w", off, err)
	}
	misses, err := v.fill(w, []piece{{p: p, off: off}})
	w.readers.Done()
	if err != nil || len(misses) == 0 {
		return err
	}
	return w.ground.Read(ctx, misses)
}

// Changes returns the ranges of the disk that were written or zeroed behind after and up
// to through, which is kept, and reach beyond off: their offset and their length, in bytes,
// rising. It may name more, where after is not kept; ErrNotFound says that the journal does
// not go back as far. What is not asked for any more is not looked at.
func (v *Volume) Changes(after, through content.Position, off int64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		_, next, done, err := v.span(after, through, uint64(off/extents.SectorSize))
		if err != nil {
			yield(blockdev.Range{}, err)
			return
		}
		defer done()
		var at blockdev.Range
		for {
			e, ok, err := next()
			if err != nil {
				yield(blockdev.Range{}, err)
				return
			}
			start, n := int64(e.Start)*extents.SectorSize, int64(e.N)*extents.SectorSize
			if ok && at.Length > 0 && start == at.Offset+at.Length {
				at.Length += n
				continue
			}
			if at.Length > 0 && !yield(at, nil) || !ok {
				return
			}
			at = blockdev.Range{Offset: start, Length: n}
		}
	}
}

// span returns what is newest behind after and up to through, from a sector on.
func (v *Volume) span(after, through content.Position, s uint64) (w view, next extents.Cursor, done func(), err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	w, ok := v.asOf(through)
	layers, _ := between(v.layers, after, through) // also of what lies before the base by now
	n := len(layers)
	switch {
	case v.closed:
		return w, nil, nil, content.ErrClosed
	case !ok:
		return w, nil, nil, v.gone(through)
	case n == 0 && after.Seq < through.Seq, n > 0 && layers[n-1].after.Seq > after.Seq:
		return w, nil, nil, v.gone(after)
	}
	w.readers.Add(1)
	return w, flattened(layers, s), func() { w.readers.Done() }, nil
}

// Rebase lays the volume on another root, which has all up to base, a position that is
// kept: readers go there, and what the journal has up to base goes, but for what a kept
// position before it needs. Config.Base is to be base from the next Open on; the caller has
// made that durable before. The old source may be read until what was asked of it has
// ended.
func (v *Volume) Rebase(src Source, size int64, chunkSize int, base content.Position) error {
	v.tending.Lock()
	defer v.tending.Unlock()
	v.syncing.Lock() // no sync has the files in hand that go
	defer v.syncing.Unlock()
	v.mu.Lock()
	if _, ok := v.asOf(base); !ok || v.closed || base.Seq < v.ground.base.Seq {
		v.mu.Unlock()
		return fmt.Errorf("rebase: %w", v.gone(base))
	}
	v.ground = &ground{Root: root.Root{Source: src, Size: size, ChunkSize: chunkSize}, base: base, older: v.ground}
	v.cutFront()
	return nil
}

// letGo drops what was held for positions before the base that are released by now. Called with tending.
func (v *Volume) letGo() {
	v.syncing.Lock()
	defer v.syncing.Unlock()
	if v.mu.Lock(); v.closed || v.ground.older == nil {
		v.mu.Unlock()
		return
	}
	v.cutFront()
}

// cutFront drops what lies before the base and before all kept positions. Called with tending, syncing and mu, which it unlocks.
func (v *Volume) cutFront() {
	oldest := v.ground.base
	for p := range v.kept {
		if p.Seq < oldest.Seq {
			oldest = p
		}
	}
	g := v.ground
	for ; g.older != nil && g.base.Seq > oldest.Seq; g = g.older {
	}
	g.older = nil
	layers, went := []*layer(nil), []*layer(nil)
	for _, l := range v.layers {
		if l.through.Seq <= g.base.Seq {
			went = append(went, l)
		} else {
			layers = append(layers, l)
		}
	}
	n := slices.IndexFunc(v.chain, func(s *segment) bool { return s == v.tail || s.through().Seq > g.base.Seq })
	if n < 0 {
		n = len(v.chain)
	}
	dead := slices.Clone(v.chain[:n])
	v.layers, v.chain = layers, slices.Clone(v.chain[n:])
	if v.open.after.Seq < g.base.Seq {
		v.open.after = g.base
	}
	v.retire(dead, went)
}

// retire removes files that nobody looks into from now on; they are closed beside, once
// those who still do are done. What can't be removed is left to the next start. Called with
// mu, which it unlocks.
func (v *Volume) retire(segments []*segment, layers []*layer) {
	old := v.readers
	v.readers = newReaders(old.done)
	room := v.spareRoom()
	v.mu.Unlock()
	if v.pressed() {
		room = 0
	}
	var errs []error
	var spares []journal.Spare
	for _, s := range segments {
		if s.replaced {
			v.pressure.freed.Add(s.size)
			continue
		}
		kept, err := v.discard(s, room)
		if errs = append(errs, err); err == nil {
			spares = append(spares, kept...)
		}
		v.cfg.Step("removed")
	}
	v.work.Go(func() {
		old.drain()
		for _, s := range segments {
			errs = append(errs, s.file.Close())
		}
		for _, l := range layers {
			errs = append(errs, l.drop())
		}
		v.vacate(segments...)
		errs = append(errs, v.spares.Keep(spares))
		v.spares.Warm()
		if err := errors.Join(errs...); err != nil {
			v.cfg.Log.Warn("files of a journal that nothing needs any more are left", "dir", v.cfg.Dir, "err", err)
		}
		close(old.done)
	})
}

// Grow makes the disk larger; what is new reads as zeros. The caller has made the size durable before.
func (v *Volume) Grow(size int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if size < v.size || size > content.SizeMax || size%extents.SectorSize != 0 {
		return fmt.Errorf("grow to %d bytes: %w: want a multiple of %d from %d to %d", size, content.ErrInvalid, extents.SectorSize, v.size, int64(content.SizeMax))
	}
	v.size = size
	return nil
}
