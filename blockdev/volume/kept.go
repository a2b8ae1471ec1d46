package volume

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/content/durable"
)

const (
	// keptName is a file that says which segments are left of the journal's front, from
	// which those go of which nothing lives.
	keptName   = "kept"
	keptMagic  = "GRK\x01"
	keptSize   = 28 // without what is left
	extantSize = 16
)

// kept is what is left of the segments up to number through: those listed, with their
// sizes. The last entry in them was seq.
type kept struct {
	through uint64
	seq     uint64
	left    []extant // by number
}

// extant is a segment that is left, and does not grow any more.
type extant struct {
	number uint64
	size   int64
}

func (k kept) find(number uint64) (size int64, listed bool) {
	i, listed := slices.BinarySearchFunc(k.left, number, func(x extant, number uint64) int { return cmp.Compare(x.number, number) })
	if listed {
		size = k.left[i].size
	}
	return size, listed
}

func (k kept) has(number uint64) bool {
	_, listed := k.find(number)
	return number > k.through || listed
}

// note is what k says of the journal's end: all was synced before it was written, and
// the next segment had begun.
func (k kept) note() note {
	if k.through == 0 {
		return note{}
	}
	return note{k.through + 1, segmentHeader, k.seq}
}

func (k kept) encode(seed uint32) []byte {
	b := append(make([]byte, 0, keptSize+extantSize*len(k.left)), keptMagic...)
	b = binary.LittleEndian.AppendUint64(b, k.through)
	b = binary.LittleEndian.AppendUint64(b, k.seq)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(k.left)))
	for _, x := range k.left {
		b = binary.LittleEndian.AppendUint64(b, x.number)
		b = binary.LittleEndian.AppendUint64(b, uint64(x.size))
	}
	return summed(seed, b)
}

func decodeKept(seed uint32, b []byte) (k kept, ok bool) {
	end := len(b) - 4
	if len(b) < keptSize || !whole(seed, b, keptMagic) || uint64(end-keptSize+4) != extantSize*uint64(binary.LittleEndian.Uint32(b[20:])) {
		return kept{}, false
	}
	k = kept{through: binary.LittleEndian.Uint64(b[4:]), seq: binary.LittleEndian.Uint64(b[12:])}
	for at := keptSize - 4; at < end; at += extantSize {
		k.left = append(k.left, extant{binary.LittleEndian.Uint64(b[at:]), int64(binary.LittleEndian.Uint64(b[at+8:]))})
	}
	return k, slices.IsSortedFunc(k.left, func(x, y extant) int { return cmp.Compare(x.number, y.number) })
}

// readKept returns the zero value where no segment has gone yet.
func readKept(dir string, id [16]byte) (kept, error) {
	path := filepath.Join(dir, keptName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return kept{}, nil
	}
	if err != nil {
		return kept{}, err
	}
	k, ok := decodeKept(seed(id, 0), b)
	if !ok {
		return kept{}, fmt.Errorf("%s: %w: it does not say which segments the journal has; restore it from a backup", path, content.ErrCorrupt)
	}
	return k, nil
}

// tidy syncs the journal and removes the segments of which nothing lives, so that the
// journal does not grow with what is overwritten.
func (v *Volume) tidy() {
	v.syncing.Lock()
	defer v.syncing.Unlock()
	v.mu.RLock()
	due, dead, rest := v.due(), []*segment(nil), kept{}
	for i, s := range v.chain {
		switch {
		case i == len(v.chain)-1: // the open one
			rest.seq = s.first - 1
		case v.extents.live[s.slot] == 0:
			dead, rest.through = append(dead, s), s.number
		default:
			rest.left, rest.through = append(rest.left, extant{s.number, s.size}), s.number
		}
	}
	v.mu.RUnlock()
	if due.err != nil || len(dead) == 0 && len(due.segments) < 2 {
		return
	}
	// Nothing in them lives because of entries that come later, which are synced first:
	// a loss of power must not take those and leave neither.
	if err := v.carry(due); err != nil || len(dead) == 0 {
		return // carry has said so, or failed the volume
	}
	// From here on they are no part of the journal; those that a crash leaves are removed
	// by the next start.
	if err := durable.WriteFile(filepath.Join(v.cfg.Dir, keptName), rest.encode(seed(v.cfg.ID, 0)), 0o600); err != nil {
		v.cfg.Log.Warn("segments of a journal that nothing needs any more can't be removed", "dir", v.cfg.Dir, "err", err)
		return
	}
	v.mu.Lock()
	v.chain = slices.DeleteFunc(v.chain, func(s *segment) bool { return slices.Contains(dead, s) })
	errs := make([]error, 0, len(dead))
	for _, s := range dead {
		v.slots[s.slot] = nil
		errs = append(errs, s.file.Close())
	}
	v.mu.Unlock()
	for _, s := range dead {
		errs = append(errs, os.Remove(s.file.Name()))
	}
	if err := errors.Join(errs...); err != nil {
		v.cfg.Log.Warn("segments of a journal that nothing needs any more are left; the next start removes them", "dir", v.cfg.Dir, "err", err)
	}
}
