package volumes

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// changeUnit is what is told of changes: what guests mostly write.
	changeUnit = 4096
	// readPiece is how much of two disks is compared, or written to a file, at a time.
	readPiece = 1 << 20
)

// Changes yields the ranges in which two snapshots of a volume differ, by offset, in whole
// units of 4 KiB; with to 0 the volume itself, as it is now, is the second. Only what was
// written between them, or lies in chunks that their maps have not alike, is read.
func (v *Volumes) Changes(ctx context.Context, name string, from, to uint64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if err := v.changesOf(ctx, name, from, to, func(x Extent) bool { return yield(x, nil) }); err != nil {
			yield(Extent{}, fmt.Errorf("changes of volume %q: %w", name, err))
		}
	}
}

func (v *Volumes) changesOf(ctx context.Context, name string, from, to uint64, yield func(Extent) bool) (err error) {
	first, second := content.Ref{Kind: content.KindSnapshot, Name: name, Seq: from}, content.Ref{Kind: content.KindVolume, Name: name}
	if to != 0 {
		second = content.Ref{Kind: content.KindSnapshot, Name: name, Seq: to}
	}
	a, err := v.moment(ctx, first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	b, err := v.moment(ctx, second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	ranges, err := v.suspects(ctx, a, b)
	if err != nil {
		return err
	}
	err = compare(ctx, a, b, ranges, yield)
	if errors.Is(err, io.EOF) { // who asked has enough
		return nil
	}
	return err
}

// suspects are the ranges in which two moments may differ, in order, in whole units.
func (v *Volumes) suspects(ctx context.Context, a, b moment) (out []blockdev.Range, err error) {
	add := func(off, end int64) {
		off, end = off/changeUnit*changeUnit, (end+changeUnit-1)/changeUnit*changeUnit
		out = append(out, blockdev.Range{Offset: off, Length: end - off})
	}
	both := [][2]content.Position{{a.base, a.at}, {b.base, b.at}}
	vols := []*volume.Volume{a.vol, b.vol}
	if a.vol == b.vol { // one journal has all that is between them
		if a.at.Seq > b.at.Seq {
			a, b = b, a
		}
		both, vols = [][2]content.Position{{a.at, b.at}}, vols[:1]
	} else if err := v.differing(ctx, a, b, add); err != nil {
		return nil, err
	}
	for i, p := range both {
		if p[0].Seq >= p[1].Seq {
			continue
		}
		for r, err := range vols[i].Changes(p[0], p[1]) {
			if err != nil {
				return nil, err
			}
			add(r.Offset, r.Offset+r.Length)
		}
	}
	if a.size != b.size {
		add(min(a.size, b.size), max(a.size, b.size))
	}
	slices.SortFunc(out, func(x, y blockdev.Range) int { return cmp.Compare(x.Offset, y.Offset) })
	return out, nil
}

// differing adds the chunks that the roots of two moments have not alike.
func (v *Volumes) differing(ctx context.Context, a, b moment, add func(off, end int64)) error {
	if v.rootOf(a.head) == v.rootOf(b.head) {
		return nil
	}
	read, err := v.nodes()
	if err != nil {
		return err
	}
	size := int64(content.ChunkSizeDefault)
	if a.head != nil {
		size = int64(a.head.Root.ChunkSize)
	}
	if b.head != nil {
		if a.head != nil && int64(b.head.Root.ChunkSize) != size {
			add(0, max(a.size, b.size))
			return nil
		}
		size = int64(b.head.Root.ChunkSize)
	}
	return fold.Diff(ctx, read, a.head, b.head, func(index uint64) error {
		add(int64(index)*size, int64(index+1)*size)
		return nil
	})
}

// compare yields where two moments differ within sorted ranges, which may overlap. It ends
// with io.EOF where yield wants no more.
func compare(ctx context.Context, a, b moment, ranges []blockdev.Range, yield func(Extent) bool) error {
	one, two := make([]byte, readPiece), make([]byte, readPiece)
	var at int64
	var found Extent
	for _, r := range ranges {
		for off, end := max(r.Offset, at), r.Offset+r.Length; off < end; {
			n := min(end-off, readPiece)
			if err := errors.Join(a.readPadded(ctx, one[:n], off), b.readPadded(ctx, two[:n], off)); err != nil {
				return err
			}
			for u := int64(0); u < n; u += changeUnit {
				if bytes.Equal(one[u:u+changeUnit], two[u:u+changeUnit]) {
					continue
				}
				if found.Length > 0 && found.Offset+found.Length == off+u {
					found.Length += changeUnit
					continue
				}
				if found.Length > 0 && !yield(found) {
					return io.EOF
				}
				found = Extent{off + u, changeUnit}
			}
			off += n
			at = off
		}
	}
	if found.Length > 0 && !yield(found) {
		return io.EOF
	}
	return nil
}

// readPadded is read, with zeros past the end.
func (m moment) readPadded(ctx context.Context, p []byte, off int64) error {
	n := min(max(m.size-off, 0), int64(len(p)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return m.read(ctx, p[:n], off)
}
