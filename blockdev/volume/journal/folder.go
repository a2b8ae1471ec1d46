package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/grangemesh/grange/blockdev/volume/extents"
	"github.com/grangemesh/grange/origin/content"
)

// MergePrefix begins the names of merged segments until they are whole.
const MergePrefix = ".merge-"

// Found is a segment file, and whether its header is whole.
type Found struct {
	Header
	File string
	Good bool
}

// Folder is where the journal of a volume lies, which may begin with segments of others.
type Folder struct {
	Dir       string
	ID        content.VolumeID
	Ancestors []content.VolumeID
}

// List returns the segments that the journal has behind a base, rising by number, and the
// files there that it has given up: also those up to the base, unless before says that
// somebody needs them.
func (d Folder) List(base content.Position, before bool) (chain []Found, gone []string, err error) {
	files, err := os.ReadDir(d.Dir)
	if err != nil {
		return nil, nil, err
	}
	var all []Found
	for _, f := range files {
		name := f.Name()
		if strings.HasPrefix(name, extents.TempPrefix) || strings.HasPrefix(name, MergePrefix) || strings.HasPrefix(name, SparePrefix) {
			gone = append(gone, name)
		}
		if !strings.HasSuffix(name, Suffix) {
			continue
		}
		x, err := d.find(name)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Found) int { return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Epoch, b.Epoch)) })
	next := uint64(math.MaxUint64) // what comes behind that is there already
	for i, x := range slices.Backward(all) {
		switch {
		case i > 0 && all[i-1].Number == x.Number:
			return nil, nil, fmt.Errorf("%s and %s in %s: %w: two segments have one number; restore the folder from a backup", all[i-1].File, x.File, d.Dir, content.ErrCorrupt)
		case x.Number <= base.Number && before:
		case x.Number <= base.Number || x.Number > next:
			gone = append(gone, x.File)
		default:
			chain, next = append(chain, x), x.After.Number
		}
	}
	slices.Reverse(chain)
	return chain, gone, nil
}

// find reads the name of a segment's file, and its header.
func (d Folder) find(name string) (Found, error) {
	epoch, number, ok := ParseName(name)
	if !ok {
		return Found{}, fmt.Errorf("%s: %w: not a name of a segment", filepath.Join(d.Dir, name), content.ErrCorrupt)
	}
	x := Found{Header{Volume: d.ID, Epoch: epoch, Number: number, After: content.Position{Number: number - 1}}, name, false}
	f, err := os.Open(filepath.Join(d.Dir, name))
	if err != nil {
		return Found{}, err
	}
	defer f.Close()
	b := make([]byte, HeaderSize)
	if _, err := io.ReadFull(f, b); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Found{}, err
	}
	h, err := DecodeHeader(b)
	if err == nil && h.Epoch == epoch && h.Number == number && (h.Volume == d.ID || slices.Contains(d.Ancestors, h.Volume)) {
		x.Header, x.Good = h, true
	}
	return x, nil
}
