// Package readahead decides how far a guest's reading is run ahead of.
package readahead

import "sync/atomic"

const (
	// least is how many chunks are asked for behind two in a row that a guest missed:
	// behind one alone it goes on in two of five reads at most, and what it does not
	// read costs a slow link as much as what it does. While it goes on the distance that
	// it is run ahead of doubles, to most: 4 MiB of chunks of the default size.
	least, most = 4, 32
	// steps is in how many parts the distance is kept up: in two, what comes side by side
	// would mostly be here when the next part is asked for, and a long line run dry.
	steps = 4
	// recentMax is how many places a guest may read on at once and be seen to.
	recentMax = 8
	// runsMax bounds the runs of an image that are under way: those of a distance, and as
	// many of the one before that are late.
	runsMax = 2 * steps
)

// Window is what one image's guests were run ahead of. Guests that read at several
// places at once share it: they get the least. The zero value is ready; safe for
// concurrent use.
type Window struct {
	mark    atomic.Uint64 // one more than the chunk whose read runs ahead again; 0 for none
	end     atomic.Uint64 // the first chunk that was not asked for
	size    atomic.Uint64 // how far ahead of the guest that was, in chunks
	running atomic.Int32
	recent  [recentMax]atomic.Uint64 // one more than chunks that were missed lately
	misses  atomic.Uint32
}

// Run is what is to be asked for: the chunks from one on to before another, for a guest
// that is then run ahead of by so many.
type Run struct{ From, To, Ahead uint64 }

// Marks reports whether a read of that chunk runs ahead again.
func (w *Window) Marks(index uint64) bool { return w.mark.Load() == index+1 }

// Reached is told of a read, and returns the next run when the guest has come to the
// mark.
func (w *Window) Reached(index uint64) (Run, bool) {
	if !w.mark.CompareAndSwap(index+1, 0) {
		return Run{}, false
	}
	ahead := min(2*w.size.Load(), most)
	return Run{w.end.Load(), index + ahead + 1, ahead}, true
}

// Missed returns the run behind a chunk that was neither here nor asked for, if the guest
// goes on there: far if that is where it was expected. One that is about to come to the
// mark has given up what was asked for, which is slow: it is run ahead of as it is.
func (w *Window) Missed(index uint64) (Run, bool) {
	if mark := w.mark.Load(); index < mark && mark-index <= most/steps+1 {
		return Run{}, false
	}
	ahead := uint64(least)
	on := w.size.Load() > 0 && w.end.Load() == index
	if on {
		ahead = max(least, min(2*w.size.Load(), most))
	}
	for i := range w.recent {
		on = on || index > 0 && w.recent[i].Load() == index
	}
	if !on {
		w.recent[w.misses.Add(1)%recentMax].Store(index + 1)
	}
	return Run{index + 1, index + ahead + 1, ahead}, on
}

// Begin sets the mark a step behind the guest, and returns the end of a run that ends
// before limit; false when enough are under way. Then End is called.
func (w *Window) Begin(r Run, limit uint64) (end uint64, ok bool) {
	if w.running.Load() >= runsMax {
		return 0, false
	}
	end = min(r.To, limit)
	w.size.Store(r.Ahead)
	w.end.Store(end)
	w.mark.Store(min(r.To-r.Ahead+r.Ahead/steps, end-1) + 1)
	w.running.Add(1)
	return end, true
}

// End notes that what a run asked for has come, or will not.
func (w *Window) End() { w.running.Add(-1) }
