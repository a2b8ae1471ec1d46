package tree

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
)

// Cuts says how a tree's segments are told.
type Cuts struct {
	// Stamp is that of a file, of that Number, see Writer.Add; nil where none is known.
	Stamp func(f File, number uint64) []byte
	// CID names a chunk; a hole has none.
	CID func(ctx context.Context, index uint64) (content.CID, error)
	// Note is told of each segment that has a key, and no hole.
	Note func(key content.CID, s Segment)
}

// Segments tells what the files of a tree were cut into, as the Writer did that has written it, and reads none of them.
func (t *Tree) Segments(ctx context.Context, c Cuts) error {
	r := &recutting{Cuts: c, tree: t}
	err := r.folder(ctx, t.Top())
	if err == nil {
		err = r.endGroup(ctx)
	}
	return err
}

// recutting goes through a tree as its Writer did.
type recutting struct {
	Cuts
	tree  *Tree
	group []member // small files whose segment has not ended
	size  int64    // of them together
	next  uint64   // the first chunk behind the segments that have ended,
	table int      // and where its length is
}

func (r *recutting) folder(ctx context.Context, folder File) error {
	in, err := r.tree.List(ctx, folder)
	for place, f := range in {
		if err != nil {
			break
		}
		switch {
		case f.Is(Folder):
			err = r.folder(ctx, f)
		case f.Is(Regular) && len(f.Same) == 0:
			err = r.file(ctx, f, member{name: string(f.Name), size: f.Size, stamp: r.Stamp(f, folder.Number(place))})
		}
	}
	return err
}

func (r *recutting) file(ctx context.Context, f File, m member) error {
	if f.Size < largeMin {
		if f.Size > 0 {
			r.group, r.size = append(r.group, m), r.size+f.Size
		}
		if endsGroup(r.size, m.name) {
			return r.endGroup(ctx)
		}
		return nil
	}
	if err := r.endGroup(ctx); err != nil {
		return err
	}
	return r.segment(ctx, []member{m}, f.Data, f.Ranges)
}

func (r *recutting) endGroup(ctx context.Context) error {
	members, size := r.group, r.size
	r.group, r.size = nil, 0
	return r.segment(ctx, members, size, nil)
}

// segment tells of files that take the next bytes of the data stream.
func (r *recutting) segment(ctx context.Context, members []member, left int64, ranges []Range) error {
	key, known := keyOf(members)
	s := Segment{Ranges: ranges}
	for left > 0 {
		if r.table >= len(r.tree.table) {
			return fmt.Errorf("tree: %w: its files have more than its chunks", content.ErrCorrupt)
		}
		length, n := binary.Uvarint(r.tree.table[r.table:])
		if left -= int64(length); left < 0 {
			return fmt.Errorf("tree: %w: chunk %d is of two segments", content.ErrInvalid, r.next)
		}
		if known {
			id, err := r.CID(ctx, r.next)
			if err != nil {
				return err
			}
			known = !id.IsHole()
			s.Pieces = append(s.Pieces, Piece{CID: id, Length: int(length)})
		}
		r.next, r.table = r.next+1, r.table+n
	}
	if known && len(s.Pieces) > 0 {
		r.Note(key, s)
	}
	return nil
}
