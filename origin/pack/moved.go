package pack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

const (
	// relocateMax bounds how often the frames of a pack may have moved on.
	relocateMax = 8
	// lookedMax bounds how often is looked again where a pack went, as the one that a stub has named is gone.
	lookedMax = 2
	// movesMax bounds the directories that a Reader remembers of packs that were rewritten and of those that took over, and
	// movedMax the entries of them all, some 70 bytes each: 16 GiB of content in default chunks.
	movesMax = 4096
	movedMax = 1 << 17
)

// moves remembers where packs went: the directories of stubs, and of the packs that they lead to. The zero moves is
// ready for use. Safe for concurrent use.
type moves struct {
	mu      sync.Mutex // guards what follows
	known   *simplelru.LRU[ID, *Directory]
	entries int // of all
}

func (m *moves) get(id ID) *Directory {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		return nil
	}
	d, _ := m.known.Get(id)
	return d
}

func (m *moves) put(d *Directory) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		m.known, _ = simplelru.NewLRU(movesMax, func(_ ID, d *Directory) { m.entries -= len(d.Entries) }) // fails for sizes below 1 only
	}
	m.known.Remove(d.Pack)
	m.known.Add(d.Pack, d)
	for m.entries += len(d.Entries); m.entries > movedMax && m.known.Len() > 1; {
		m.known.RemoveOldest()
	}
}

// forget drops what is known of a pack that can't be read any more, and which packs moved there.
func (m *moves) forget(id ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil {
		return
	}
	m.known.Remove(id)
	for _, stub := range m.known.Keys() {
		if d, _ := m.known.Peek(stub); d.Moved == id {
			m.known.Remove(stub)
		}
	}
}

// open opens a range of a pack, unless it is a stub by now, which is ErrNotFound: whoever asks for frames of it is sent on
// by Relocate, which knows it then.
func (r *Reader) open(ctx context.Context, id ID, at bucket.Range) (*bucket.Object, error) {
	if d := r.moves.get(id); d == nil || d.Moved == "" {
		obj, err := open(ctx, r.bucket, id, at)
		switch {
		case errors.Is(err, content.ErrNotFound):
			r.moves.forget(id)
			return nil, err
		case err == nil && obj.Size != SizeMin || err != nil && !errors.Is(err, errShort):
			return obj, err
		case err == nil:
			err = errors.Join(errShort, obj.Body.Close())
		}
		d, stubErr := r.ReadDirectory(ctx, id)
		switch {
		case stubErr != nil && !isGone(stubErr):
			return nil, stubErr
		case stubErr != nil || d.Moved == "":
			return nil, errors.Join(err, stubErr)
		}
		r.moves.put(d)
	}
	return nil, fmt.Errorf("read pack %s: %w: its frames are in another pack now", id, content.ErrNotFound)
}

// Taker returns the directory of the pack that has the frames of a pack now: of that itself, or of the one where its stub
// leads, through others perhaps. What was learnt of packs that moved is remembered, until what it says is not so any more.
func (r *Reader) Taker(ctx context.Context, id ID) (*Directory, error) {
	at, again := id, 0
	for range relocateMax {
		d := r.moves.get(at)
		if d == nil {
			var err error
			if d, err = r.ReadDirectory(ctx, at); errors.Is(err, content.ErrNotFound) && at != id && again < lookedMax {
				r.moves.forget(at) // what led there is old, as it was remembered or as it was read
				at, again = id, again+1
				continue
			}
			if err != nil {
				return nil, err
			}
			if d.Moved != "" || at != id {
				r.moves.put(d)
			}
		}
		if d.Moved == "" {
			if at != id { // what moves on and on makes no long way
				r.moves.put(&Directory{Pack: id, Moved: at})
			}
			return d, nil
		}
		at = d.Moved
	}
	return nil, fmt.Errorf("pack %s: %w: moved more than %d times", id, content.ErrCorrupt, relocateMax)
}

// Relocate finds out where e lies now, after a read of it failed: the pack may have been rewritten into
// another, whose name its footer gives. It is ErrNotFound when no pack holds e any more, and ErrCorrupt when
// e still lies where it did, so that reading again brings nothing.
func (r *Reader) Relocate(ctx context.Context, e Extent) (Extent, error) {
	d, err := r.Taker(ctx, e.Pack)
	if err != nil {
		return Extent{}, fmt.Errorf("relocate %s: %w", e.CID, err)
	}
	found, ok := d.Find(e.CID)
	switch {
	case !ok:
		return Extent{}, fmt.Errorf("relocate %s: %w in pack %s", e.CID, content.ErrNotFound, d.Pack)
	case found.Extent == e:
		return Extent{}, fmt.Errorf("relocate %s: %w: damaged in %s", e.CID, content.ErrCorrupt, e.Location)
	}
	return found.Extent, nil
}

// Source reads packs: a Reader, or one that watches it.
type Source interface {
	Stream(ctx context.Context, frames []Extent, take func(i int, v content.Verified)) error
	Relocate(ctx context.Context, e Extent) (Extent, error)
	Free(content.Verified)
}

// ReadMoved is StreamMoved that waits for all. The result has an element for each frame,
// the zero Verified for those that could not be had.
func ReadMoved(ctx context.Context, from Source, frames []Extent) ([]content.Verified, error) {
	out := make([]content.Verified, len(frames))
	err := StreamMoved(ctx, from, frames, func(i int, v content.Verified) { out[i] = v })
	return out, err
}

// StreamMoved is Stream of frames of one run: those that came damaged, or broke off as their pack was rewritten meanwhile,
// are read once more, and then where their pack says that they went: what lies together there with one GET.
func StreamMoved(ctx context.Context, from Source, frames []Extent, take func(i int, v content.Verified)) error {
	m := moving{from: from, asked: frames, now: slices.Clone(frames), take: take}
	for i := range frames {
		m.lacks = append(m.lacks, i)
	}
	err := m.stream(ctx)
	if errors.Is(err, content.ErrCorrupt) || errors.Is(err, bucket.ErrReplaced) {
		err = m.stream(ctx)
	}
	for try := range relocateMax { // where they went they may have moved on since that was learnt
		if !isGone(err) {
			break
		}
		if m.relocate(ctx, try > 0); len(m.lacks) == 0 {
			break
		}
		err = m.stream(ctx)
	}
	if errors.Is(m.lost, content.ErrUnavailable) { // where it is now is not known
		return m.lost
	}
	return errors.Join(m.lost, err)
}

// isGone reports whether a frame may be somewhere else.
func isGone(err error) bool {
	return errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrNotFound)
}

// moving is frames on their way from packs that were rewritten, maybe.
type moving struct {
	from       Source
	asked, now []Extent // where they were, and where they are looked for
	take       func(i int, v content.Verified)
	lacks      []int // those that have not come, and may yet
	lost       error // of the first that is nowhere
}

// stream reads what is lacking. Its error is that of the first read that failed.
func (m *moving) stream(ctx context.Context) (err error) {
	for _, at := range m.reads() {
		extents := make([]Extent, len(at))
		for n, i := range at {
			extents[n] = m.now[i]
		}
		failed := m.from.Stream(ctx, extents, func(n int, v content.Verified) {
			m.lacks = slices.DeleteFunc(m.lacks, func(i int) bool { return i == at[n] })
			m.take(at[n], v)
		})
		if failed != nil && !isGone(failed) {
			return failed
		}
		err = cmp.Or(err, failed)
	}
	return err
}

// reads groups what is lacking by what one GET brings.
func (m *moving) reads() (out [][]int) {
	lacks := slices.Clone(m.lacks)
	slices.SortStableFunc(lacks, func(a, b int) int {
		return cmp.Or(cmp.Compare(m.now[a].Pack, m.now[b].Pack), cmp.Compare(m.now[a].Offset, m.now[b].Offset))
	})
	start := 0
	for n, i := range lacks {
		if first := m.now[lacks[start]]; m.now[i].Pack != first.Pack || m.now[i].End()-first.Offset > spanMax {
			out, start = append(out, lacks[start:n]), n
		}
	}
	if start < len(lacks) {
		out = append(out, lacks[start:])
	}
	return out
}

// relocate finds out where each frame that is lacking is now; again is to look for another place. Who may write footers must not open the packs of a narrower
// scope so.
func (m *moving) relocate(ctx context.Context, again bool) {
	m.lacks = slices.DeleteFunc(m.lacks, func(i int) bool {
		e := m.asked[i]
		moved, err := m.from.Relocate(ctx, e)
		switch {
		case err == nil && !moved.Pack.Scope().Covers(e.Pack.Scope()):
			err = fmt.Errorf("%s was moved to %s: %w: fewer may read that", e.Pack, moved.Pack, content.ErrForbidden)
		case err == nil && again && moved == m.now[i]:
			err = fmt.Errorf("relocate %s: %w: damaged in %s", e.CID, content.ErrCorrupt, moved.Location)
		}
		if m.now[i] = moved; err != nil {
			m.lost = cmp.Or(m.lost, err)
		}
		return err != nil
	})
}
