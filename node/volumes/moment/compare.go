package moment

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/grangemesh/grange/blockdev"
	"github.com/grangemesh/grange/blockdev/volume"
	"github.com/grangemesh/grange/node/volumes/fold"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// changeUnit is what is told of changes: what guests mostly write.
	changeUnit = 4096
	// Piece is how much of two disks is compared, or written to a file, at a time.
	Piece = 1 << 20
)

// Suspects are the ranges in which two moments may differ, in order, in whole units.
func Suspects(ctx context.Context, nodes func() (fold.Nodes, error), a, b Moment) (out []blockdev.Range, err error) {
	add := func(off, end int64) {
		off, end = off/changeUnit*changeUnit, (end+changeUnit-1)/changeUnit*changeUnit
		out = append(out, blockdev.Range{Offset: off, Length: end - off})
	}
	both := [][2]content.Position{{a.Base, a.At}, {b.Base, b.At}}
	vols := []*volume.Volume{a.Vol, b.Vol}
	if a.Vol == b.Vol { // one journal has all that is between them
		if a.At.Seq > b.At.Seq {
			a, b = b, a
		}
		both, vols = [][2]content.Position{{a.At, b.At}}, vols[:1]
	} else if err := differing(ctx, nodes, a, b, add); err != nil {
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
	if a.Size != b.Size {
		add(min(a.Size, b.Size), max(a.Size, b.Size))
	}
	slices.SortFunc(out, func(x, y blockdev.Range) int { return int(min(max(x.Offset-y.Offset, -1), 1)) })
	return out, nil
}

// differing adds the chunks that the roots of two moments have not alike.
func differing(ctx context.Context, nodes func() (fold.Nodes, error), a, b Moment, add func(off, end int64)) error {
	if a.Head == b.Head || a.Head != nil && b.Head != nil && a.Head.Root == b.Head.Root {
		return nil
	}
	read, err := nodes()
	if err != nil {
		return err
	}
	size := int64(content.ChunkSizeDefault)
	if a.Head != nil {
		size = int64(a.Head.Root.ChunkSize)
	}
	if b.Head != nil {
		if a.Head != nil && int64(b.Head.Root.ChunkSize) != size {
			add(0, max(a.Size, b.Size))
			return nil
		}
		size = int64(b.Head.Root.ChunkSize)
	}
	return fold.Diff(ctx, read, a.Head, b.Head, func(index uint64) error {
		add(int64(index)*size, int64(index+1)*size)
		return nil
	})
}

// Compare yields where two moments differ within sorted ranges, which may overlap. It ends
// with io.EOF where yield wants no more.
func Compare(ctx context.Context, a, b Moment, ranges []blockdev.Range, yield func(blockdev.Range) bool) error {
	one, two := make([]byte, Piece), make([]byte, Piece)
	var at int64
	var found blockdev.Range
	for _, r := range ranges {
		for off, end := max(r.Offset, at), r.Offset+r.Length; off < end; {
			n := min(end-off, Piece)
			if err := errors.Join(a.Padded(ctx, one[:n], off), b.Padded(ctx, two[:n], off)); err != nil {
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
				found = blockdev.Range{Offset: off + u, Length: changeUnit}
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

// Differ yields where two moments differ, by offset, in whole units. It ends with io.EOF
// where yield wants no more.
func Differ(ctx context.Context, nodes func() (fold.Nodes, error), a, b Moment, yield func(blockdev.Range) bool) error {
	ranges, err := Suspects(ctx, nodes, a, b)
	if err != nil {
		return err
	}
	return Compare(ctx, a, b, ranges, yield)
}

// Restore writes to the volume of now what differs from was, and flushes it.
func Restore(ctx context.Context, nodes func() (fold.Nodes, error), now, was Moment) error {
	p := make([]byte, Piece)
	var failed error
	err := Differ(ctx, nodes, now, was, func(x blockdev.Range) bool {
		for off := x.Offset; off < min(x.Offset+x.Length, now.Size) && failed == nil; off += Piece {
			failed = restore(ctx, now, was, p[:min(x.Offset+x.Length-off, now.Size-off, Piece)], off)
		}
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return err
	}
	return now.Vol.Flush(ctx)
}

func restore(ctx context.Context, now, was Moment, b []byte, off int64) error {
	if err := was.Padded(ctx, b, off); err != nil {
		return err
	}
	if content.IsZero(b) {
		return now.Vol.Zero(ctx, off, int64(len(b)), false, false)
	}
	return now.Vol.WriteAt(ctx, b, off, false)
}
