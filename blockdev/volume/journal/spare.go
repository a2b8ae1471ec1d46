package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/grangemesh/grange/origin/content/durable"
)

// SparePrefix begins the names of spares. A start removes those that it finds.
const SparePrefix = ".spare-"

// Spares are files of segments that nothing needs any more, to be used for those that come:
// what is written over old bytes needs no space of the disk and no new size, so that a sync
// has nothing to write but it.
//
// A file has lost its old name durably before a byte of it is written over, and it has no
// other: a fork may have it, too. Its old bytes stand behind the new ones until the segment
// ends. None of them is an entry or a table there: their sums are of the same volume and of
// another number, and no two numbers below 2^32 have one seed.
//
// Safe for concurrent use; no lock is held while the disk is waited for.
type Spares struct {
	Dir string

	mu    sync.Mutex
	ready []Spare
	next  int
	bytes int64
}

// Spare is a file, and its length.
type Spare struct {
	path string
	size int64
}

// Bytes is what all of them take.
func (x *Spares) Bytes() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.bytes
}

// Claim counts a file of some size, if all take no more than most then.
func (x *Spares) Claim(size, most int64) (Spare, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bytes+size > most {
		return Spare{}, false
	}
	x.next++
	x.bytes += size
	return Spare{filepath.Join(x.Dir, fmt.Sprint(SparePrefix, x.next)), size}, true
}

// Rename takes a segment's name away from its file, which was claimed.
func (x *Spares) Rename(path string, s Spare) error {
	err := os.Rename(path, s.path)
	if err != nil {
		x.dropped(s)
	}
	return err
}

// Keep has files that were renamed, and nobody has open, be used by Open from now on.
func (x *Spares) Keep(list []Spare) error {
	if len(list) == 0 {
		return nil
	}
	err := durable.SyncDir(x.Dir)
	for _, s := range list {
		if err != nil || !sole(s.path) {
			err = errors.Join(err, x.remove(s))
			continue
		}
		x.mu.Lock()
		x.ready = append(x.ready, s)
		x.mu.Unlock()
	}
	return err
}

// take returns a spare that is nobody else's then, if there is one.
func (x *Spares) take() (s Spare, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if ok = len(x.ready) > 0; ok {
		s, x.ready = x.ready[0], x.ready[1:]
	}
	return s, ok
}

func (x *Spares) dropped(s Spare) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.bytes -= s.size
}

func (x *Spares) remove(s Spare) error {
	defer x.dropped(s)
	return os.Remove(s.path)
}

// Shed removes spares until all take no more than most, and returns what that has freed.
func (x *Spares) Shed(most int64) (freed int64, err error) {
	for x.Bytes() > most {
		s, ok := x.take()
		if !ok {
			break
		}
		freed, err = freed+s.size, errors.Join(err, x.remove(s))
	}
	return freed, err
}

// Warm has the kernel read the next spare, beside: to write over a part of a page takes the
// rest of it.
func (x *Spares) Warm() {
	x.mu.Lock()
	var next string
	if len(x.ready) > 0 {
		next = x.ready[0].path
	}
	x.mu.Unlock()
	if f, err := os.Open(next); err == nil {
		prefetch(f)
		_ = f.Close() // nothing was written
	}
}

// Open gives a spare a segment's name, and returns the file and its length: 0 for a file
// that is new, as no spare was there that is of use, or none is to be used again. Its bytes are not those of
// the segment yet.
func (x *Spares) Open(h Header, again bool) (f *os.File, size int64, err error) {
	path := filepath.Join(x.Dir, h.Name())
	var s Spare
	if again {
		s, again = x.take()
	}
	if again {
		linked := os.Link(s.path, path) == nil // which a name that is taken refuses
		if err = x.remove(s); linked && err == nil {
			if f, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
				return f, s.size, nil
			}
		}
		if linked {
			_ = os.Remove(path) // else it is there for the next line
		}
	}
	f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	return f, 0, err
}
