package journal

import (
	"cmp"
	"errors"
	"fmt"
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

// List returns the segments that the journal of a volume has behind a base, rising by number,
// and the files in its folder that it has given up: also those up to the base, unless before
// says that somebody needs them. Of are the volumes whose segments it may have, its own first.
func List(dir string, of []content.VolumeID, base content.Position, before bool) (chain []Found, gone []string, err error) {
	files, err := os.ReadDir(dir)
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
		x, err := find(dir, name, of)
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
			return nil, nil, fmt.Errorf("%s and %s in %s: %w: two segments have one number; restore the folder from a backup", all[i-1].File, x.File, dir, content.ErrCorrupt)
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
func find(dir, name string, of []content.VolumeID) (Found, error) {
	epoch, number, ok := ParseName(name)
	if !ok {
		return Found{}, fmt.Errorf("%s: %w: not a name of a segment", filepath.Join(dir, name), content.ErrCorrupt)
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return Found{}, err
	}
	defer f.Close()
	h, err := ReadHeader(f)
	if err != nil && !errors.Is(err, content.ErrCorrupt) {
		return Found{}, err
	}
	if err == nil && h.Epoch == epoch && h.Number == number && slices.Contains(of, h.Volume) {
		return Found{h, name, true}, nil
	}
	return Found{Header{Volume: of[0], Epoch: epoch, Number: number, After: content.Position{Number: number - 1}}, name, false}, nil
}
