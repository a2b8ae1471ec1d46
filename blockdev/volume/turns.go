package volume

import (
	"errors"
	"slices"
	"sync"

	"github.com/grangemesh/grange/blockdev/volume/journal"
)

// change is an entry on its way into the journal, or nothing: who only wants the turn.
type change struct {
	journal.Entry
	buf  *[]byte // lent
	head []byte  // the entry's head and the sums of its data
	data []byte
	done chan error // what came of it, or errTurn: of one
}

// bytes is what the change adds to a segment.
func (c *change) bytes() int64 { return int64(len(c.head) + len(c.data)) }

// errTurn says that the turn has come.
var errTurn = errors.New("the turn")

// turns has one append to the journal at a time, in the order in which they came. The
// one whose turn it is takes those with it that wait behind it.
type turns struct {
	mu      sync.Mutex
	taken   bool
	waiting []*change
}

// try takes the turn, if nobody has it.
func (t *turns) try() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	free := !t.taken
	t.taken = true
	return free
}

// busy reports whether somebody has the turn.
func (t *turns) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken
}

// take takes the turn and returns true, or has c wait: then c.done tells.
func (t *turns) take(c *change) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.taken {
		t.taken = true
		return true
	}
	t.waiting = append(t.waiting, c)
	return false
}

// join adds to batch the changes that wait at the front, for up to room bytes.
func (t *turns) join(batch []*change, room int64) []*change {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for ; n < len(t.waiting) && len(batch) < batchMax; n++ {
		c := t.waiting[n]
		if room -= c.bytes(); c.Kind == 0 || room < 0 {
			break
		}
		batch = append(batch, c)
	}
	t.waiting = slices.Delete(t.waiting, 0, n)
	return batch
}

// pass gives the turn to the next one who waits.
func (t *turns) pass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		t.taken = false
		return
	}
	next := t.waiting[0]
	t.waiting = slices.Delete(t.waiting, 0, 1)
	next.done <- errTurn
}

// lend returns a change with room for an entry; give takes it back.
func (v *Volume) lend(e journal.Entry, data []byte, copied bool) *change {
	c, ok := v.changes.Get().(*change)
	if !ok {
		c = &change{done: make(chan error, 1)}
	}
	n := e.DataOffset()
	if copied {
		n = e.Size()
	}
	c.Entry, c.buf = e, v.buffers.Get(int(n))
	c.head, c.data = (*c.buf)[:e.DataOffset()], data
	if copied {
		c.data = (*c.buf)[e.DataOffset():]
	}
	return c
}

func (v *Volume) give(c *change) {
	v.buffers.Put(c.buf)
	c.buf, c.head, c.data = nil, nil, nil
	v.changes.Put(c)
}

// take waits for the turn.
func (v *Volume) take() {
	c := &change{done: make(chan error, 1)}
	if !v.turns.take(c) {
		<-c.done
	}
}
