package moment

import (
	"bytes"
	"cmp"
	"context"
	"errors"
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
	// Piece is how much of two disks is compared, or written to a file, at a time.
	Piece = 1 << 20
)

// Whole is the range of any disk.
func Whole() blockdev.Range { return blockdev.Range{Length: content.SizeMax} }

// suspects are the ranges from an offset on in which two moments may differ, by offset, in
// whole units; they may overlap. What is not asked for any more is not looked at.
func (p Pair) suspects(ctx context.Context, off int64) iter.Seq2[blockdev.Range, error] {
	a, b := p.A, p.B
	if a.Vol == b.Vol { // one journal has all that is between them
		if a.At.Seq > b.At.Seq {
			a, b = b, a
		}
		return merged(written(a.Vol, a.At, b.At, off), resized(a, b))
	}
	return merged(p.differing(ctx, off), written(a.Vol, a.Base, a.At, off), written(b.Vol, b.Base, b.At, off), resized(a, b))
}

// inUnits is the range of whole units about another one.
func inUnits(off, end int64) blockdev.Range {
	off, end = off/changeUnit*changeUnit, (end+changeUnit-1)/changeUnit*changeUnit
	return blockdev.Range{Offset: off, Length: end - off}
}

// written is what a journal has between two places.
func written(vol *volume.Volume, after, through content.Position, off int64) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		if after.Seq >= through.Seq {
			return
		}
		for r, err := range vol.Changes(after, through, off) {
			if !yield(inUnits(r.Offset, r.Offset+r.Length), err) {
				return
			}
		}
	}
}

// resized is what one of two moments has more.
func resized(a, b Moment) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		if a.Size != b.Size {
			yield(inUnits(min(a.Size, b.Size), max(a.Size, b.Size)), nil)
		}
	}
}

// differing are the chunks that the roots of two moments have not alike.
func (p Pair) differing(ctx context.Context, off int64) iter.Seq2[blockdev.Range, error] {
	a, b := p.A, p.B
	return func(yield func(blockdev.Range, error) bool) {
		if a.Head == b.Head || a.Head != nil && b.Head != nil && a.Head.Root == b.Head.Root {
			return
		}
		size := cmp.Or(chunkSize(a), chunkSize(b), content.ChunkSizeDefault)
		if other := chunkSize(b); other != 0 && other != size {
			yield(inUnits(0, max(a.Size, b.Size)), nil)
			return
		}
		read, err := p.Nodes()
		more := true
		if err == nil {
			err = read.Diff(ctx, a.Head, b.Head, uint64(off/size), func(index uint64) error {
				if more = yield(inUnits(int64(index)*size, int64(index+1)*size), nil); !more {
					return io.EOF
				}
				return nil
			})
		}
		if err != nil && more {
			yield(blockdev.Range{}, err)
		}
	}
}

func chunkSize(m Moment) int64 {
	if m.Head == nil {
		return 0
	}
	return int64(m.Head.Root.ChunkSize)
}

// merged yields what several rows have, each by offset, by offset.
func merged(rows ...iter.Seq2[blockdev.Range, error]) iter.Seq2[blockdev.Range, error] {
	return func(yield func(blockdev.Range, error) bool) {
		type row struct {
			next func() (blockdev.Range, error, bool)
			at   blockdev.Range
		}
		var open []*row
		pull := func(r *row) (more bool) {
			at, err, ok := r.next()
			if err != nil {
				yield(at, err)
				return false
			}
			if r.at = at; !ok {
				open = slices.DeleteFunc(open, func(x *row) bool { return x == r })
			}
			return true
		}
		for _, seq := range rows {
			next, stop := iter.Pull2(seq)
			defer stop()
			open = append(open, &row{next: next})
		}
		for _, r := range slices.Clone(open) {
			if !pull(r) {
				return
			}
		}
		for len(open) > 0 {
			r := slices.MinFunc(open, func(a, b *row) int { return cmp.Compare(a.at.Offset, b.at.Offset) })
			if !yield(r.at, nil) || !pull(r) {
				return
			}
		}
	}
}

// Pair are two moments, and how nodes of their maps are read.
type Pair struct {
	A, B  Moment
	Nodes func() (fold.Nodes, error)
}

// Differ yields where they differ within a range, by offset, in whole units. It ends with
// io.EOF where yield wants no more.
func (p Pair) Differ(ctx context.Context, within blockdev.Range, yield func(blockdev.Range) bool) error {
	within = inUnits(within.Offset, within.Offset+within.Length)
	one, two := make([]byte, Piece), make([]byte, Piece)
	at, last := within.Offset, within.Offset+within.Length
	var found blockdev.Range
	for r, err := range p.suspects(ctx, at) {
		if err != nil {
			return err
		}
		if r.Offset >= last {
			break
		}
		for off, end := max(r.Offset, at), min(r.Offset+r.Length, last); off < end; {
			n := min(end-off, Piece)
			if err := errors.Join(p.A.Padded(ctx, one[:n], off), p.B.Padded(ctx, two[:n], off)); err != nil {
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

// Restore writes to the volume of A what differs from B, and flushes it.
func (p Pair) Restore(ctx context.Context) error {
	now, was, b := p.A, p.B, make([]byte, Piece)
	var failed error
	err := p.Differ(ctx, Whole(), func(x blockdev.Range) bool {
		for off := x.Offset; off < min(x.Offset+x.Length, now.Size) && failed == nil; off += Piece {
			failed = restore(ctx, now, was, b[:min(x.Offset+x.Length-off, now.Size-off, Piece)], off)
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
