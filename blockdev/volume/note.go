package volume

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
// to length, and so all entries up to seq.
type note struct {
	number uint64
	length int64
	seq    uint64
}

// encode lays a note out; see the package comment.
func (n note) encode() []byte {
	b := append(make([]byte, 0, noteSize), noteMagic...)
	for _, x := range [...]uint64{n.number, uint64(n.length), n.seq} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return summed(b)
}

func decodeNote(b []byte) (n note, ok bool) {
	if len(b) < noteSize || !whole(b[:noteSize], noteMagic) {
		return note{}, false
	}
	n = note{binary.LittleEndian.Uint64(b[4:]), int64(binary.LittleEndian.Uint64(b[12:])), binary.LittleEndian.Uint64(b[20:])}
	return n, n.number > 0 && n.length >= segmentHeader
}

// covers reports whether what begins at off of a segment was durable.
func (n note) covers(number uint64, off int64) bool {
	return number < n.number || number == n.number && off < n.length
}

func (n note) after(m note) bool {
	return n.number > m.number || n.number == m.number && n.length > m.length
}

// readNote returns the zero note where nothing was noted yet.
func readNote(dir string) (note, error) {
	path := filepath.Join(dir, noteName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, nil
	}
	if err != nil {
		return note{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, noteSlot+noteSize))
	if err != nil {
		return note{}, err
	}
	best, ok := decodeNote(b)
	if second, valid := decodeNote(b[min(noteSlot, len(b)):]); valid && (!ok || second.after(best)) {
		best, ok = second, true
	}
	if !ok {
		return note{}, fmt.Errorf("%s: %w: it says nothing of the journal's end; restore it from a backup, or, if you know that all segments are there whole, remove it", path, content.ErrCorrupt)
	}
	return best, nil
}

// keeper writes the notes of one volume. Its owner locks.
type keeper struct {
	file *os.File // nil before the first
	last note
	turn int64
}

// write notes what was synced just now. It is not synced itself: what a loss of power
// leaves of it is older, and true.
func (k *keeper) write(dir string, n note) error {
	if !n.after(k.last) {
		return nil
	}
	b := n.encode()
	if k.file == nil {
		path := filepath.Join(dir, noteName)
		if k.last == (note{}) { // there is none, or the volume would not be open
			if err := durable.WriteFile(path, b, 0o600); err != nil {
				return err
			}
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		k.file = f
	}
	k.turn++
	if _, err := k.file.WriteAt(b, k.turn%2*noteSlot); err != nil {
		return err
	}
	k.last = n
	return nil
}

// close makes the last note durable.
func (k *keeper) close() error {
	if k.file == nil {
		return nil
	}
	return errors.Join(k.file.Sync(), k.file.Close())
}

// note writes down that the segments up to s are durable, that one up to length. It
// may fail on a full disk, and is tried again by the next sync: what was flushed is
// flushed all the same. Called with syncing, or before the volume is anybody's.
func (v *Volume) note(n note) {
	if v.cfg.ReadOnly || n.number == 0 {
		return
	}
	if err := v.notes.write(v.cfg.Dir, n); err != nil {
		v.cfg.Log.Debug("no note of the journal's end", "dir", v.cfg.Dir, "err", err)
	}
}

// end is the note of all that the journal has. Called with mu, or before the volume is
// anybody's.
func (v *Volume) end() note {
	n := len(v.chain)
	if n == 0 {
		return note{}
	}
	s := v.chain[n-1]
	return note{s.number, s.size, v.seq}
}
