package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// NoteName is a file that says, outside the segments, how much of them is durable.
	// What they say of each other shows that something is missing among them; this
	// shows that the end is, which would else look like an end.
	NoteName = "synced"
	// NoteSlot is where the second of its two slots begins: they are written in turn,
	// so that a torn one leaves the other, which is older and holds too.
	NoteSlot  = 4096
	NoteSize  = 32
	noteMagic = "GRN\x01"
)

// Note is what is known to be durable: the segments before number whole, that one up
// to length, and so all entries up to seq. Nothing is, where number is 0.
type Note struct {
	Number uint64
	Length int64
	Seq    uint64
}

// Encode returns a slot of the file.
func (n Note) Encode(seed uint32) []byte {
	b := append(make([]byte, 0, NoteSize), noteMagic...)
	for _, x := range [...]uint64{n.Number, uint64(n.Length), n.Seq} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return Summed(seed, b)
}

func decodeNote(seed uint32, b []byte) (n Note, ok bool) {
	if len(b) < NoteSize || !Whole(seed, b[:NoteSize], noteMagic) {
		return Note{}, false
	}
	n = Note{binary.LittleEndian.Uint64(b[4:]), int64(binary.LittleEndian.Uint64(b[12:])), binary.LittleEndian.Uint64(b[20:])}
	return n, n == Note{} || n.Number > 0 && n.Length >= HeaderSize
}

// Covers reports whether what begins at off of a segment was durable.
func (n Note) Covers(number uint64, off int64) bool {
	return number < n.Number || number == n.Number && off < n.Length
}

func (n Note) after(m Note) bool {
	return n.Number > m.Number || n.Number == m.Number && n.Length > m.Length
}

// WriteFirst writes the note of a folder that has none: both slots, so that a full disk does
// not take their place away. The caller syncs the folder.
func WriteFirst(dir string, id [16]byte, first Note) error {
	b, at := make([]byte, NoteSlot+NoteSize), first.Encode(Seed(id, 0))
	copy(b, at)
	copy(b[NoteSlot:], at)
	return durable.Place(filepath.Join(dir, NoteName), b, 0o600)
}

// ReadNote returns the note that is farther, and its slot: the next one goes to the other.
func ReadNote(dir string, id [16]byte) (best Note, slot int64, err error) {
	path := filepath.Join(dir, NoteName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Note{}, 0, fmt.Errorf("%s is missing: %w: what was written to the volume may be missing too; restore its folder from a backup, or remove the volume and create it again", path, content.ErrCorrupt)
	}
	if err != nil {
		return Note{}, 0, err
	}
	best, ok := decodeNote(Seed(id, 0), b)
	if second, valid := decodeNote(Seed(id, 0), b[min(NoteSlot, len(b)):]); valid && (!ok || second.after(best)) {
		best, slot, ok = second, 1, true
	}
	if !ok {
		return Note{}, 0, fmt.Errorf("%s: %w: it does not say where the journal of this volume ends; restore it from a backup, or attach the volume read-only to save what is there", path, content.ErrCorrupt)
	}
	return best, slot, nil
}

// Keeper writes the notes of one volume. Its owner locks.
type Keeper struct {
	Seed uint32   // of its sums
	File *os.File // nil before the first
	Last Note
	Turn int64 // the last was written to slot turn mod 2
}

// Write notes what was synced just now. But for the first it is not synced itself: what
// a loss of power leaves of it is older, and true.
func (k *Keeper) Write(dir string, n Note) error {
	if !n.after(k.Last) {
		return nil
	}
	if k.File == nil {
		f, err := os.OpenFile(filepath.Join(dir, NoteName), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		k.File = f
	}
	if _, err := k.File.WriteAt(n.Encode(k.Seed), (k.Turn+1)%2*NoteSlot); err != nil {
		return err
	}
	k.Turn++
	if k.Last == (Note{}) { // what comes before it is not true any more: the journal has begun
		if err := k.File.Sync(); err != nil {
			return err
		}
	}
	k.Last = n
	return nil
}

// Close syncs what was written.
func (k *Keeper) Close() error {
	if k.File == nil {
		return nil
	}
	return errors.Join(k.File.Sync(), k.File.Close())
}

// Rewrite writes the bytes of a file from an offset on in place again, so that a sync has them
// to write. After one that has failed the kernel takes its memory for what is on the disk, and
// says so to whoever opens the file next.
func Rewrite(f *os.File, from, end int64) error {
	_, err := io.Copy(io.NewOffsetWriter(f, from), io.NewSectionReader(f, from, end-from))
	return err
}
