package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

type walk struct {
	Config
	head  pack.Head
	shape content.Shape
	reads chan struct{} // one in it for each that is in flight

	mu   sync.Mutex // guards done and serializes Progress and Damaged
	done Report
}

func (w *walk) add(change func(*Report)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.done)
	if w.Progress != nil {
		w.Progress(w.done)
	}
}

// reading does a read in its turn.
func (w *walk) reading(ctx context.Context, read func()) error {
	select {
	case w.reads <- struct{}{}:
		defer func() { <-w.reads }()
		read()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// damaged counts d, or returns its error when that says nothing of the image.
func (w *walk) damaged(ctx context.Context, d Damage) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !content.IsDamage(d.Err) {
		return d.Err
	}
	suspect := errors.Is(d.Err, content.ErrCorrupt) && (d.What == whatEnd || w.suspect(ctx, d.Extent))
	w.add(func(r *Report) {
		if suspect && !slices.Contains(r.Suspect, d.Extent.Pack) {
			r.Suspect = append(r.Suspect, d.Extent.Pack)
		}
		if errors.Is(d.Err, content.ErrNotFound) {
			r.Missing++
		} else {
			r.Bad++
		}
		if r.First == nil || before(d, *r.First) {
			r.First = &d
		}
		if w.Damaged != nil {
			w.Damaged(d)
		}
	})
	return nil
}

// suspect reports whether damage is that of the pack, which says itself that the object
// lies there, or has no directory; else it is the map's, whoever made that.
func (w *walk) suspect(ctx context.Context, e pack.Extent) bool {
	w.mu.Lock()
	known := slices.Contains(w.done.Suspect, e.Pack)
	w.mu.Unlock()
	if known {
		return true
	}
	_, err := w.Reader.Relocate(ctx, e)
	return errors.Is(err, content.ErrCorrupt)
}

// before orders damage by the place in the image, what has none last.
func before(a, b Damage) bool {
	placed := func(d Damage) bool { return d.What == whatChunk || d.What == whatNode }
	if !placed(a) || !placed(b) {
		return placed(a)
	}
	first, _ := a.At.Chunks()
	other, _ := b.At.Chunks()
	return first < other || first == other && a.At.Level > b.At.Level
}

// node reads the map from a place on down, and the chunks below. It returns what that refers to.
func (w *walk) node(ctx context.Context, at content.Pos, p pack.Pair) (refs, error) {
	if p.Node.CID.IsHole() {
		return refs{}, nil
	}
	first, end := at.Chunks()
	below := subtree{p, at.Level, w.head.Scope, w.shape.ChunkMax, w.shape.Even, min(end, w.shape.Chunks) - first}
	if packs, ok := w.Seen.below(below); ok {
		return packs, nil
	}
	out := refs{}
	out.add(p.Node.Pack, 1, uint64(p.Node.Length+p.Page.Length))
	var n pack.MapNode
	var bad error
	if err := w.reading(ctx, func() { n, bad = pack.ReadNode(ctx, moves{w.Reader}, w.head.Scope, at.Level, p) }); err != nil {
		return nil, err
	}
	if bad != nil {
		return out, w.damaged(ctx, Damage{at, whatNode, p.Node, bad})
	}
	w.add(func(r *Report) { r.Nodes++ })
	was := w.damages()
	if err := w.children(ctx, at, n, out); err != nil {
		return nil, err
	}
	if w.damages() == was { // else it may be elsewhere: then this is read again
		w.Seen.addBelow(below, out)
	}
	return out, nil
}

func (w *walk) damages() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done.Bad + w.done.Missing
}

// children reads what a map node names, and adds to what it refers to.
func (w *walk) children(ctx context.Context, at content.Pos, n pack.MapNode, to refs) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	var chunks []frame
	var mu sync.Mutex // guards to, while nodes are read
	var err error
	for i := 0; i < n.Page.Len() && err == nil; i++ {
		child := at.Child(i)
		where, ok := n.Page.Child(i)
		if !ok {
			continue
		}
		if child.Level == 0 {
			to.add(where.Pack, 1, uint64(where.Length))
		}
		e := pack.Extent{CID: n.Node.Entry(i), Location: where}
		switch {
		case !w.shape.Contains(child):
			err = w.damaged(ctx, Damage{child, whatOf(child), e, fmt.Errorf("%w: beyond the end of the image", content.ErrCorrupt)})
		case child.Level > 0:
			pair, _ := n.Page.ChildPair(n.Node, i) // above level 1 a child that is there has a page
			group.Go(func() error {
				packs, err := w.node(ctx, child, pair)
				mu.Lock()
				defer mu.Unlock()
				to.merge(packs)
				return err
			})
		case w.shape.CheckChunk(int(e.Raw)) != nil:
			err = w.damaged(ctx, Damage{child, whatChunk, e, fmt.Errorf("%w: %w", content.ErrCorrupt, w.shape.CheckChunk(int(e.Raw)))})
		case !w.Seen.Has(e):
			chunks = append(chunks, frame{child, e, e})
		}
	}
	if err == nil {
		chunks, err = w.placed(ctx, chunks)
	}
	for _, together := range runs(chunks) {
		if err == nil {
			group.Go(func() error { return w.read(ctx, together) })
		}
	}
	if waited := group.Wait(); waited != nil {
		err = waited // the cause, where err is that the walk was told to end
	}
	return err
}

func whatOf(at content.Pos) string {
	if at.Level == 0 {
		return whatChunk
	}
	return whatNode
}

// frame is a chunk that is to be read: where the map says that it lies, and where it does, if its pack was rewritten.
type frame struct {
	at content.Pos
	pack.Extent
	lies pack.Extent
}

// placed returns those of some chunks that are to be read, each where it lies. Of the others it looks whether their packs
// can have them.
func (w *walk) placed(ctx context.Context, frames []frame) (out []frame, err error) {
	sizes := make(map[pack.ID]sized) // of the packs of this node
	unread := uint64(0)
	for _, f := range frames {
		if w.Packs != nil {
			if f.lies, err = w.placedBy(ctx, f.Extent, sizes); err != nil {
				if err = w.damaged(ctx, Damage{f.at, whatChunk, f.Extent, err}); err != nil {
					return nil, err
				}
				continue
			}
		}
		if w.Choose == nil || w.Choose(f.lies.Run()) {
			out = append(out, f)
		} else {
			unread++
		}
	}
	if unread > 0 {
		w.add(func(r *Report) { r.Unread += unread })
	}
	return out, nil
}

// sized is how long a pack is, or why that is not known.
type sized struct {
	n   int64
	err error
}

// placedBy returns where a frame lies, by the lengths of packs.
func (w *walk) placedBy(ctx context.Context, e pack.Extent, known map[pack.ID]sized) (pack.Extent, error) {
	p, asked := known[e.Pack]
	if !asked {
		p.n, p.err = w.Packs.size(ctx, e.Pack)
		known[e.Pack] = p
	}
	switch {
	case p.err != nil:
		return e, p.err
	case p.n >= int64(e.End()):
		return e, nil
	case p.n != pack.SizeMin:
		return e, fmt.Errorf("%w: the pack has only %d bytes", content.ErrCorrupt, p.n)
	}
	to, err := moves{w.Reader}.Relocate(ctx, e)
	if err == nil && !to.Pack.Scope().Covers(e.Pack.Scope()) {
		err = fmt.Errorf("%s was moved to %s: %w: fewer may read that", e.Pack, to.Pack, content.ErrForbidden)
	}
	if err != nil {
		return e, err
	}
	if n, err := w.Packs.size(ctx, to.Pack); err != nil || n < int64(to.End()) {
		return e, cmp.Or(err, fmt.Errorf("%w: pack %s, to which it was moved, has only %d bytes", content.ErrCorrupt, to.Pack, n))
	}
	return to, nil
}

// runs puts together what one read takes: frames that begin in one run, each once,
// and that unpack to rawAtOnce at most.
func runs(frames []frame) [][]frame {
	slices.SortStableFunc(frames, func(a, b frame) int {
		return cmp.Or(cmp.Compare(a.lies.Pack, b.lies.Pack), cmp.Compare(a.lies.Offset, b.lies.Offset))
	})
	frames = slices.CompactFunc(frames, func(a, b frame) bool { return a.Extent == b.Extent })
	var out [][]frame
	start, raw := 0, 0
	for i, f := range frames {
		if i > start && (f.lies.Run() != frames[start].lies.Run() || raw+int(f.Raw) > rawAtOnce) {
			out = append(out, frames[start:i])
			start, raw = i, 0
		}
		raw += int(f.Raw)
	}
	if start < len(frames) {
		out = append(out, frames[start:])
	}
	return out
}

// moves follows packs that were rewritten into others, and those alone: what lies
// elsewhere in the same pack than the map says is damage.
type moves struct{ *pack.Reader }

func (m moves) Relocate(ctx context.Context, e pack.Extent) (pack.Extent, error) {
	d, err := m.Taker(ctx, e.Pack)
	if err == nil && d.Pack == e.Pack {
		err = fmt.Errorf("%w: it lies elsewhere in the pack, or not at all", content.ErrCorrupt)
	}
	if err != nil {
		return pack.Extent{}, err
	}
	return m.Reader.Relocate(ctx, e)
}

// read reads chunks that one GET brings.
func (w *walk) read(ctx context.Context, frames []frame) error {
	extents := make([]pack.Extent, len(frames))
	for i, f := range frames {
		extents[i] = f.lies
	}
	var got []content.Verified
	var err error
	if ended := w.reading(ctx, func() { got, err = pack.ReadMoved(ctx, moves{w.Reader}, extents) }); ended != nil {
		return ended
	}
	if errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrNotFound) { // it is of the first of several
		err = fmt.Errorf("%w: what lies there is something else", content.ErrCorrupt)
	}
	chunks, stored := uint64(0), uint64(0)
	for i, f := range frames {
		if !got[i].CID().IsHole() {
			chunks, stored = chunks+1, stored+uint64(f.Length)
			w.Seen.Add(f.Extent)
			w.Reader.Free(got[i])
		} else if err := w.damaged(ctx, Damage{f.at, whatChunk, f.lies, err}); err != nil {
			return err
		}
	}
	w.add(func(r *Report) { r.Chunks, r.StoredBytes = r.Chunks+chunks, r.StoredBytes+stored })
	return nil
}

// ends reads the ends of packs, each once: who imports, and who follows a pack that was rewritten, needs them.
func (w *walk) ends(ctx context.Context, packs refs) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	packs.add(w.head.Manifest.Pack, 0, 0)
	for id := range packs {
		end := pack.Extent{Location: pack.Location{Pack: id}}
		if w.Seen.Has(end) || w.Choose != nil && !w.Choose(pack.Run{Pack: id, N: EndOfPack}) {
			continue
		}
		group.Go(func() error {
			if _, err := w.Reader.ReadDirectory(ctx, id); err != nil {
				return w.damaged(ctx, Damage{content.Pos{}, whatEnd, end, err})
			}
			w.Seen.Add(end)
			return nil
		})
	}
	return group.Wait()
}

// manifest checks that the manifest is of this image, and names each pack that it
// refers to: what it does not name is collected one day.
func (w *walk) manifest(ctx context.Context, packs refs) error {
	e := w.head.Manifest
	bad := func(err error) error {
		return w.damaged(ctx, Damage{content.Pos{}, whatManifest, e, err})
	}
	m, err := w.Reader.ReadManifest(ctx, w.head)
	if err != nil {
		return bad(err)
	}
	if err := m.CheckOf(content.NewCodec(), w.head); err != nil {
		return bad(err)
	}
	for _, id := range slices.Sorted(maps.Keys(packs)) {
		if _, ok := m.Pack(id); !ok {
			return bad(fmt.Errorf("%w: it does not name pack %s, to which the image refers", content.ErrCorrupt, id))
		}
	}
	if w.done.First != nil { // what lies under a bad node was not counted
		return nil
	}
	for _, p := range m.Packs {
		if now := packs[p.ID]; now.Refs != p.Refs || now.Bytes != p.Bytes {
			return bad(fmt.Errorf("%w: it counts %d places and %d bytes in pack %s, and the image refers to %d and %d", content.ErrCorrupt, p.Refs, p.Bytes, p.ID, now.Refs, now.Bytes))
		}
	}
	return nil
}
