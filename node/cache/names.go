package cache

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"

	"github.com/grangemesh/grange/origin/content"
)

const (
	// nameSize is a record of the names file: which object a slot is filled
	// with. The file is sparse, with room for the slots of the smallest class in
	// each slab, so that the record of a slot stays where it is.
	nameSize     = 40
	slabNameSize = nameSize << slotBits
)

// name is a record of the names file.
type name struct {
	id     content.CID
	length int
	reach  Reach
}

// reachShift is where the reach begins in the word of the length.
const reachShift = 30

func (n name) encode(at place) (b [nameSize]byte) {
	copy(b[:], n.id[:])
	binary.LittleEndian.PutUint32(b[32:], uint32(n.length)|uint32(n.reach)<<reachShift)
	binary.LittleEndian.PutUint32(b[36:], nameSum(b[:], at))
	return b
}

// nameSum covers the place too: a record elsewhere is not a record.
func nameSum(b []byte, at place) uint32 {
	return crc32.Checksum(b[:36], castagnoli) ^ uint32(at)*0x9e3779b1
}

// decodeName reads a record; false when it is none.
func decodeName(b []byte, at place) (name, bool) {
	w := binary.LittleEndian.Uint32(b[32:])
	n := name{content.CID(b[:32]), int(w & (1<<reachShift - 1)), Reach(w >> reachShift)}
	return n, n.length > 0 && n.length <= slotMax && binary.LittleEndian.Uint32(b[36:]) == nameSum(b, at)
}

// names is the file that says which object lies in which slot, and makes indexes anew.
type names struct{ file *os.File }

func nameOffset(at place) int64 { return int64(at.slab())*slabNameSize + int64(at.slot())*nameSize }

func (f names) write(at place, n name) error {
	b := n.encode(at)
	_, err := f.file.WriteAt(b[:], nameOffset(at))
	return err
}

func (f names) read(at place) (name, bool) {
	var b [nameSize]byte
	if _, err := f.file.ReadAt(b[:], nameOffset(at)); err != nil {
		return name{}, false
	}
	return decodeName(b[:], at)
}

// slab fills buf with the records of a slab's first slots; what the file does
// not have, or the disk does not give, is zeros.
func (f names) slab(number, slots int, buf []byte) []byte {
	buf = buf[:slots*nameSize]
	n, err := f.file.ReadAt(buf, nameOffset(newPlace(number, 0)))
	if err != nil && err != io.EOF {
		n = 0
	}
	clear(buf[n:])
	return buf
}

// slabs is how many slabs the file knows of.
func (f names) slabs() int {
	size, err := f.file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0
	}
	return int(min((size+slabNameSize-1)/slabNameSize, slabsMax))
}

// blank removes the record of a slot that is free: an index that is made anew must
// not give an object back what it might do when it was here before.
func (f names) blank(at place) {
	var none [nameSize]byte
	f.file.WriteAt(none[:], nameOffset(at)) // a disk that fails so fails the next Put
}

// forget removes the records of a slab, before another class takes it.
func (f names) forget(number int) {
	off := nameOffset(newPlace(number, 0))
	if punchHole(f.file, off, slabNameSize) != nil {
		f.file.WriteAt(make([]byte, slabNameSize), off) // a stale name costs a check, no more
	}
}
