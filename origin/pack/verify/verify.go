// Package verify reads an image at the origin as its readers would: from the head in
// its record down the map, each node, page and chunk at the place that its own
// locator page names, decoded and hashed. What packs say of themselves is not asked.
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

const (
	// readsAtOnce bounds the ranged reads in flight: enough for a store that is far away.
	readsAtOnce = 8
	// rawAtOnce bounds what one read may unpack to, in bytes: a run of chunks that hardly say anything would
	// fill the memory. With the reads in flight it makes 64 MiB.
	rawAtOnce = 8 << 20
)

// Damage is an object of an image that its readers would not get.
type Damage struct {
	// At is the object's place in the map; a manifest has none.
	At content.Pos
	// What is "chunk", "map node" or "manifest".
	What string
	// Extent is what should be there; without a Pack nothing says where.
	Extent pack.Extent
	// Err wraps content.ErrNotFound when the pack is missing, else ErrCorrupt, or
	// ErrForbidden for a pack that the image may not refer to.
	Err error
}

// Error names the place of the damage.
func (d Damage) Error() string {
	what := d.What
	switch d.What {
	case whatChunk:
		what = d.At.String()
	case whatNode:
		what = "map " + d.At.String()
	}
	where := "nowhere"
	if d.Extent.Pack != "" {
		where = fmt.Sprintf("%s at %d+%d", d.Extent.Pack.Key(), d.Extent.Offset, d.Extent.Length)
	}
	return fmt.Sprintf("%s (%s) in %s: %v", what, d.Extent.CID, where, d.Err)
}

// Unwrap returns Err.
func (d Damage) Unwrap() error { return d.Err }

const (
	whatChunk    = "chunk"
	whatNode     = "map node"
	whatManifest = "manifest"
)

// Report counts what was read.
type Report struct {
	// Chunks and Nodes were read and are what the map says, a node with its page.
	Chunks, Nodes uint64
	// StoredBytes is what the chunks took at the origin.
	StoredBytes uint64
	// Bad and Missing objects; what lies under a bad map node is not known, and not counted.
	Bad, Missing uint64
	// First is the damage of the lowest place in the image, nil without any.
	First *Damage
	// Suspect are the packs, each once, that hold something else than their own
	// directories say, see package index.
	Suspect []pack.ID
}

// Err is nil when all is well, else it wraps First and says how much there is.
func (r Report) Err() error {
	if r.First == nil {
		return nil
	}
	return fmt.Errorf("%d objects are damaged and %d missing at the origin, the first is %w; import the image again from its source, or from an export by a node that holds it", r.Bad, r.Missing, *r.First)
}

// Image reads all of an image. Progress is called after each read, by one goroutine
// at a time; it must return at once. Damage is in the Report; the error is of a store
// that does not answer, or of ctx, and then the Report is of a part.
func Image(ctx context.Context, r *pack.Reader, head pack.Head, progress func(Report)) (Report, error) {
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	w := &walk{reader: r, head: head, shape: head.Root.Shape(), group: group, report: progress, packs: make(map[pack.ID]pack.PackRefs)}
	err := w.node(reading, content.Pos{Level: w.shape.Depth()}, head.Top())
	if waited := group.Wait(); waited != nil {
		err = waited // the cause, where err is that the walk was told to end
	}
	if err == nil {
		err = w.manifest(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done, err
}

type walk struct {
	reader *pack.Reader
	head   pack.Head
	shape  content.Shape
	group  *errgroup.Group
	report func(Report)
	packs  map[pack.ID]pack.PackRefs // that the image refers to; owned by who walks

	mu   sync.Mutex // guards done and serializes report
	done Report
}

func (w *walk) add(change func(*Report)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.done)
	if w.report != nil {
		w.report(w.done)
	}
}

// damaged counts d, or returns its error when that says nothing of the image.
func (w *walk) damaged(ctx context.Context, d Damage) error {
	missing := errors.Is(d.Err, content.ErrNotFound)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !missing && !errors.Is(d.Err, content.ErrCorrupt) && !errors.Is(d.Err, content.ErrForbidden) && !errors.Is(d.Err, content.ErrInvalid) {
		return d.Err
	}
	suspect := errors.Is(d.Err, content.ErrCorrupt) && w.suspect(ctx, d.Extent)
	w.add(func(r *Report) {
		if suspect && !slices.Contains(r.Suspect, d.Extent.Pack) {
			r.Suspect = append(r.Suspect, d.Extent.Pack)
		}
		if missing {
			r.Missing++
		} else {
			r.Bad++
		}
		if r.First == nil || before(d, *r.First) {
			r.First = &d
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
	_, err := w.reader.Relocate(ctx, e)
	return errors.Is(err, content.ErrCorrupt)
}

// before orders damage by the place in the image, the manifest last.
func before(a, b Damage) bool {
	if a.What == whatManifest || b.What == whatManifest {
		return a.What != whatManifest
	}
	first, _ := a.At.Chunks()
	other, _ := b.At.Chunks()
	return first < other || first == other && a.At.Level > b.At.Level
}

// node reads the map from a place on down; of level 1, it begins to read the chunks.
func (w *walk) node(ctx context.Context, at content.Pos, p pack.Pair) error {
	if p.Node.CID.IsHole() {
		return nil
	}
	w.refer(p.Node.Pack, p.Node.Length+p.Page.Length)
	n, err := pack.ReadNode(ctx, moves{w.reader}, w.head.Scope, at.Level, p)
	if err != nil {
		return w.damaged(ctx, Damage{at, whatNode, p.Node, err})
	}
	w.add(func(r *Report) { r.Nodes++ })
	var chunks []frame
	for i := range n.Page.Len() {
		child := at.Child(i)
		where, ok := n.Page.Child(i)
		if !ok {
			continue
		}
		if child.Level == 0 {
			w.refer(where.Pack, where.Length)
		}
		e := pack.Extent{CID: n.Node.Entry(i), Location: where}
		switch {
		case !w.shape.Contains(child):
			err = w.damaged(ctx, Damage{child, whatOf(child), e, fmt.Errorf("%w: beyond the end of the image", content.ErrCorrupt)})
		case child.Level > 0:
			pair, _ := n.Page.ChildPair(n.Node, i) // above level 1 a child that is there has a page
			err = w.node(ctx, child, pair)
		case w.shape.CheckChunk(int(e.Raw)) != nil:
			err = w.damaged(ctx, Damage{child, whatChunk, e, fmt.Errorf("%w: %w", content.ErrCorrupt, w.shape.CheckChunk(int(e.Raw)))})
		default:
			chunks = append(chunks, frame{child, e})
		}
		if err != nil {
			return err
		}
	}
	return w.chunks(ctx, chunks)
}

// refer counts a place of the map, as the manifest does.
func (w *walk) refer(id pack.ID, bytes uint32) {
	p := w.packs[id]
	w.packs[id] = pack.PackRefs{ID: id, Refs: p.Refs + 1, Bytes: p.Bytes + uint64(bytes)}
}

func whatOf(at content.Pos) string {
	if at.Level == 0 {
		return whatChunk
	}
	return whatNode
}

// frame is a chunk that is to be read.
type frame struct {
	at content.Pos
	pack.Extent
}

func (w *walk) chunks(ctx context.Context, frames []frame) error {
	for _, together := range runs(frames) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		w.group.Go(func() error { return w.read(ctx, together) })
	}
	return nil
}

// runs puts together what one read takes: frames that begin in one run, each once,
// and that unpack to rawAtOnce at most.
func runs(frames []frame) [][]frame {
	slices.SortStableFunc(frames, func(a, b frame) int {
		return cmp.Or(cmp.Compare(a.Pack, b.Pack), cmp.Compare(a.Offset, b.Offset))
	})
	frames = slices.CompactFunc(frames, func(a, b frame) bool { return a.Extent == b.Extent })
	var out [][]frame
	start, raw := 0, 0
	for i, f := range frames {
		if i > start && (f.Run() != frames[start].Run() || raw+int(f.Raw) > rawAtOnce) {
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
		extents[i] = f.Extent
	}
	got, err := pack.ReadMoved(ctx, moves{w.reader}, extents)
	if errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrNotFound) { // it is of the first of several
		err = fmt.Errorf("%w: what lies there is something else", content.ErrCorrupt)
	}
	chunks, stored := uint64(0), uint64(0)
	for i, f := range frames {
		if !got[i].CID().IsHole() {
			chunks, stored = chunks+1, stored+uint64(f.Length)
		} else if err := w.damaged(ctx, Damage{f.at, whatChunk, f.Extent, err}); err != nil {
			return err
		}
	}
	w.add(func(r *Report) { r.Chunks, r.StoredBytes = r.Chunks+chunks, r.StoredBytes+stored })
	return nil
}

// manifest checks that the manifest is of this image, and names each pack that it
// refers to: what it does not name is collected one day.
func (w *walk) manifest(ctx context.Context) error {
	e := w.head.Manifest
	bad := func(err error) error {
		return w.damaged(ctx, Damage{content.Pos{}, whatManifest, e, err})
	}
	m, err := w.reader.ReadManifest(ctx, w.head)
	if err != nil {
		return bad(err)
	}
	root, err := w.head.Root.Encode(content.NewCodec())
	if err != nil {
		return err
	}
	if m.Root != root.CID() || m.Page != w.head.Page.CID {
		return bad(fmt.Errorf("%w: it is of root %s, not of %s", content.ErrCorrupt, m.Root, root.CID()))
	}
	for _, id := range slices.Sorted(maps.Keys(w.packs)) {
		if _, ok := m.Pack(id); !ok {
			return bad(fmt.Errorf("%w: it does not name pack %s, to which the image refers", content.ErrCorrupt, id))
		}
	}
	if w.done.First != nil { // what lies under a bad node was not counted
		return nil
	}
	for _, p := range m.Packs {
		if now := w.packs[p.ID]; now.Refs != p.Refs || now.Bytes != p.Bytes {
			return bad(fmt.Errorf("%w: it counts %d places and %d bytes in pack %s, and the image refers to %d and %d", content.ErrCorrupt, p.Refs, p.Bytes, p.ID, now.Refs, now.Bytes))
		}
	}
	return nil
}
