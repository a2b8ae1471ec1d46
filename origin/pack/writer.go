package pack

import (
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// writer fills one pack in memory.
type writer struct {
	id        ID
	buf       []byte // header and frames
	directory []byte
}

// sealed is a pack that is ready for the bucket.
type sealed struct {
	id     ID
	bytes  []byte
	footer footer
	// directory is the part of bytes that holds it.
	directory []byte
}

// newWriter begins a pack in buf, whose old content is dropped.
func newWriter(id ID, buf []byte) *writer {
	return &writer{id: id, buf: append(buf[:0], packMagic...)}
}

// empty reports whether no frame was added.
func (w *writer) empty() bool { return len(w.directory) == 0 }

// size returns the length that the pack would have with n more frames of total
// length more.
func (w *writer) size(n, more int) int {
	return len(w.buf) + more + len(w.directory) + n*entrySizeDirectory + footerSize
}

// add appends a frame and returns where it lies.
func (w *writer) add(role Role, id content.CID, rawSize int, codec Codec, frame []byte) Location {
	at := Location{
		Pack: w.id, Offset: uint32(len(w.buf)), Length: uint32(len(frame)), Raw: uint32(rawSize), Codec: codec,
	}
	if len(w.buf)+len(frame) > SizeMax {
		panic(fmt.Sprintf("pack: frame of %d bytes in a pack of %d", len(frame), len(w.buf)))
	}
	w.buf = append(w.buf, frame...)
	w.directory = appendEntry(w.directory, Entry{Extent{id, at}, role})
	return at
}

// seal ends the pack. A pack that others moved to is named by moved.
func (w *writer) seal(moved ID) sealed {
	d := len(w.buf)
	f := footer{
		entries:   uint32(len(w.directory) / entrySizeDirectory),
		directory: uint32(d),
		length:    uint32(w.size(0, 0)),
		digest:    content.Sum(w.directory),
		moved:     moved,
	}
	b := f.append(append(w.buf, w.directory...))
	return sealed{w.id, b, f, b[d : d+len(w.directory)]}
}
