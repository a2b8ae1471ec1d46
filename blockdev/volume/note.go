package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// noteName is a file that says, outside the segments, how much of them is durable.
	// What they say of each other shows that something is missing among them; this
	// shows that the end is, which would else look like an end.
	noteName = "synced"
	// noteSlot is where the second of its two slots begins: they are written in turn,
	// so that a torn one leaves the other, which is older and holds too.
	noteSlot  = 4096
	noteSize  = 32
	noteMagic = "GRN\x01"
)

// note is what is known to be durable: the segments before number whole, that one up
// to length, and so all entries up to seq. Nothing is, where number is 0.
type note struct {
	number uint64
	length int64
	seq    uint64
}

func (n note) encode(seed uint32) []byte {
	b := append(make([]byte, 0, noteSize), noteMagic...)
	for _, x := range [...]uint64{n.number, uint64(n.length), n.seq} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return summed(seed, b)
}

func decodeNote(seed uint32, b []byte) (n note, ok bool) {
	if len(b) < noteSize || !whole(seed, b[:noteSize], noteMagic) {
		return note{}, false
	}
	n = note{binary.LittleEndian.Uint64(b[4:]), int64(binary.LittleEndian.Uint64(b[12:])), binary.LittleEndian.Uint64(b[20:])}
	return n, n == note{} || n.number > 0 && n.length >= segmentHeader
}

// covers reports whether what begins at off of a segment was durable.
func (n note) covers(number uint64, off int64) bool {
	return number < n.number || number == n.number && off < n.length
}

func (n note) after(m note) bool {
	return n.number > m.number || n.number == m.number && n.length > m.length
}

// writeFirst writes the note of a folder that has none: both slots, so that a full disk does
// not take their place away.
func writeFirst(dir string, id [16]byte, first note) error {
	b, at := make([]byte, noteSlot+noteSize), first.encode(seed(id, 0))
	copy(b, at)
	copy(b[noteSlot:], at)
	return durable.WriteFile(filepath.Join(dir, noteName), b, 0o600)
}

// readNote returns the note that is farther, and its slot: the next one goes to the other.
func readNote(dir string, id [16]byte) (best note, slot int64, err error) {
	path := filepath.Join(dir, noteName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, 0, fmt.Errorf("%s is missing: %w: what was written to the volume may be missing too; restore its folder from a backup, or remove the volume and create it again", path, content.ErrCorrupt)
	}
	if err != nil {
		return note{}, 0, err
	}
	best, ok := decodeNote(seed(id, 0), b)
	if second, valid := decodeNote(seed(id, 0), b[min(noteSlot, len(b)):]); valid && (!ok || second.after(best)) {
		best, slot, ok = second, 1, true
	}
	if !ok {
		return note{}, 0, fmt.Errorf("%s: %w: it does not say where the journal of this volume ends; restore it from a backup, or attach the volume read-only to save what is there", path, content.ErrCorrupt)
	}
	return best, slot, nil
}

// keeper writes the notes of one volume. Its owner locks.
type keeper struct {
	seed uint32   // of its sums
	file *os.File // nil before the first
	last note
	turn int64 // the last was written to slot turn mod 2
}

// write notes what was synced just now. But for the first it is not synced itself: what
// a loss of power leaves of it is older, and true.
func (k *keeper) write(dir string, n note) error {
	if !n.after(k.last) {
		return nil
	}
	if k.file == nil {
		f, err := os.OpenFile(filepath.Join(dir, noteName), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		k.file = f
	}
	if _, err := k.file.WriteAt(n.encode(k.seed), (k.turn+1)%2*noteSlot); err != nil {
		return err
	}
	k.turn++
	if k.last == (note{}) { // what comes before it is not true any more: the journal has begun
		if err := k.file.Sync(); err != nil {
			return err
		}
	}
	k.last = n
	return nil
}

func (k *keeper) close() error {
	if k.file == nil {
		return nil
	}
	return errors.Join(k.file.Sync(), k.file.Close())
}
