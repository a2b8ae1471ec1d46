package volume

import (
	"slices"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/blockdev/volume/root"
	"github.com/grangemesh/grange/origin/content"
)

// layer is the part of the map between two positions. All but the open one are frozen: what changes them makes another layer.
type layer struct {
	after, through content.Position // the open layer has no end
	mem            *extents.Map     // nil when it is spilled
	disk           *extents.Spilled
}

// memoryMax bounds the extents of a volume that are in memory; beyond it layers are spilled. It is some 6 GiB of writes of 4 KiB.
const memoryMax = 64 << 20

// build makes a layer of extents: in memory, if it takes no more than room there.
func (v *Volume) build(after, through content.Position, list extents.Cursor, room int64) (l *layer, err error) {
	l = &layer{after: after, through: through}
	l.mem, l.disk, err = extents.Gather(v.cfg.Dir, &v.buffers, list, room)
	return l, err
}

func newLayer(after content.Position) *layer { return &layer{after: after, mem: new(extents.Map)} }

// drop removes the file of a layer that is spilled, into which nobody looks.
func (l *layer) drop() error {
	if l.disk == nil {
		return nil
	}
	return l.disk.Drop()
}

func (l *layer) usage() *extents.Usage {
	if l.mem != nil {
		return &l.mem.Usage
	}
	return &l.disk.Usage
}

// bytes is what the layer takes in memory.
func (l *layer) bytes() int64 {
	if l.mem != nil {
		return l.mem.Size()
	}
	return int64(len(l.disk.Index)) * 8
}

// at returns the extent that covers sector s, or the next one behind it. extents.ErrCold says that this needs a wait which is not allowed.
func (l *layer) at(s uint64, wait bool) (extents.Extent, bool, error) {
	if l.mem != nil {
		e, ok := l.mem.At(s)
		return e, ok, nil
	}
	return l.disk.At(s, wait)
}

// from is what covers sector s, and all that is behind.
func (l *layer) from(s uint64) extents.Cursor {
	if l.mem == nil {
		return l.disk.From(s)
	}
	return l.mem.From(s)
}

// flattened is what several layers show together from a sector on, given with the newest first.
func flattened(layers []*layer, s uint64) extents.Cursor {
	out := extents.Cursor(func() (extents.Extent, bool, error) { return extents.Extent{}, false, nil })
	for _, l := range slices.Backward(layers) {
		out = extents.Overlay(l.from(s), out)
	}
	return out
}

// between returns the layers that hold what came behind after, up to through, where one
// of them ends; the newest first. One that began before after is taken whole.
func between(layers []*layer, after, through content.Position) ([]*layer, bool) {
	last := slices.IndexFunc(layers, func(l *layer) bool { return l.through == through })
	if last < 0 {
		return nil, false
	}
	n := last
	for n < len(layers) && layers[n].through.Seq > after.Seq {
		n++
	}
	return layers[last:n], true
}

// ground is what lies under the layers: a root.
type ground struct {
	root.Root
	base  content.Position // all up to it is in the source
	older *ground          // for kept positions before that
}

// view is all that a read of frozen layers needs; it does not change.
type view struct {
	layers  []*layer // frozen, newest first
	slots   []*segment
	ground  *ground
	readers *readers
}

// locate says what covers the byte at off in the frozen layers, and how many bytes of length it does; an extent without sectors is the ground.
func (w *view) locate(off int64, length int, wait bool) (extents.Extent, int, error) {
	s := uint64(off / extents.SectorSize)
	for _, l := range w.layers {
		e, ok, err := l.at(s, wait)
		if err != nil {
			return extents.Extent{}, 0, err
		}
		if e, n := covering(e, ok, s, length); e.N > 0 {
			return e, n, nil
		} else {
			length = n
		}
	}
	return extents.Extent{}, length, nil
}

// covering cuts an extent found for sector s to what covers it; if it is the next one, it has no sectors, and bounds the length.
func covering(e extents.Extent, ok bool, s uint64, length int) (extents.Extent, int) {
	switch {
	case !ok || e.Start >= s+uint64(length/extents.SectorSize):
		return extents.Extent{}, length
	case e.Start > s:
		return extents.Extent{}, int(e.Start-s) * extents.SectorSize
	}
	e = e.From(s)
	return e, min(length, int(e.N)*extents.SectorSize)
}

// asOf is the view of a position at which a layer ends, or which is the base.
func (w view) asOf(through content.Position) (view, bool) {
	for w.ground.base.Seq > through.Seq && w.ground.older != nil {
		w.ground = w.ground.older
	}
	if through == w.ground.base {
		w.layers = nil
		return w, true
	}
	layers, ok := between(w.layers, w.ground.base, through)
	w.layers = layers
	return w, ok && through.Seq > w.ground.base.Seq
}
