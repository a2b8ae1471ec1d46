// Package repack writes packs anew of which little is alive: [Live] finds the frames that roots need of some packs, and
// [Write] copies them into fresh packs and leaves stubs under the old names, which say where the frames went.
//
// A fresh pack is named by stubs alone: the manifests of roots go on naming the old ones. Whoever marks has a pack that a
// stub names live as long as that stub does. Whoever is killed on the way leaves each old pack as it was, or a stub whose
// taker is there; and perhaps a fresh pack that nothing names.
package repack

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// FramesMax bounds the frames that one Live finds, some 50 bytes of memory each: as many as a single pack may have, so
	// that a group of one is never too large.
	FramesMax = pack.SizeMax / pack.EntrySize
	// seenMax bounds the map nodes that are not read again where roots share them, 64 bytes each: the map of 64 TiB. Beyond
	// it they are.
	seenMax = 1 << 19
	// readsAtOnce bounds the reads of map nodes in flight: enough for a store that is far away.
	readsAtOnce = 8
)

// Group are packs of one scope that are written anew together.
type Group struct {
	// Packs are those that have frames of their own.
	Packs []pack.ID
	// Stubs are all packs whose stubs lead to one of Packs, directly or through others, with that. What maps have in a stub
	// lies there: what is left out here is taken for dead.
	Stubs map[pack.ID]pack.ID
}

// of returns which of Packs has what maps have in a pack.
func (g Group) of(id pack.ID) pack.ID {
	if taker, ok := g.Stubs[id]; ok {
		return taker
	}
	return id
}

// Frames are objects of one pack; true for those that must be there, as a map says.
type Frames map[content.CID]bool

// Alive is what lives of a group, by the pack that has it. A pack that is not there has to stay as it is.
type Alive map[pack.ID]Frames

// Left is a pack that stays as it is.
type Left struct {
	Pack pack.ID
	// Err says why. It wraps content.ErrCorrupt or content.ErrNotFound for what is damaged, and content.ErrInvalid where
	// there is nothing to be won: none of its frames lives, or there is no room for them.
	Err error
}

// Live finds which frames of a group the roots of heads need: chunks and nodes by walking their maps, each node once
// although roots share it, and the heads' own roots and manifests. Heads whose manifests name nothing of the group cost
// that one read; who knows them leaves them out. Where a map or manifest can't be read, the packs that it may name are
// left; of a broken manifest the map tells. More than FramesMax is content.ErrNoSpace: try a smaller group.
func Live(ctx context.Context, r *pack.Reader, heads []pack.Head, g Group) (Alive, []Left, error) {
	w := &walk{reader: r, group: g, alive: make(Alive), left: make(map[pack.ID]error), seen: make(map[[2]content.CID]struct{}), named: make(map[manifest][]pack.ID)}
	for _, id := range g.Packs {
		w.alive[id] = make(Frames)
	}
	var reading context.Context
	w.reads, reading = errgroup.WithContext(ctx)
	w.reads.SetLimit(readsAtOnce)
	var err error
	for _, h := range heads {
		if err = w.head(reading, h); err != nil {
			break
		}
	}
	if waited := w.reads.Wait(); waited != nil {
		err = waited // the cause, where err is that the walk was told to end
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look what is alive of %d packs: %w", len(g.Packs), err)
	}
	var left []Left
	for _, id := range g.Packs {
		if why := w.left[id]; why != nil {
			delete(w.alive, id)
			left = append(left, Left{id, why})
		}
	}
	return w.alive, left, nil
}

type walk struct {
	reader *pack.Reader
	group  Group
	reads  *errgroup.Group
	named  map[manifest][]pack.ID // by the manifests that were read, the packs of the group that they name; owned by who walks

	mu    sync.Mutex // guards what follows
	alive Alive
	count int
	left  map[pack.ID]error
	seen  map[[2]content.CID]struct{} // nodes and their pages whose children were seen
}

// manifest is one, and whose it is to be.
type manifest struct{ manifest, top, page content.CID }

// root is a head that needs something of the group.
type root struct {
	pack.Head
	packs []pack.ID // those of the group that it may need
}

func (w *walk) head(ctx context.Context, h pack.Head) error {
	if err := w.note(h.Manifest, true); err != nil {
		return err
	}
	of := manifest{h.Manifest.CID, h.Root.Map, h.Page.CID}
	packs, known := w.named[of]
	if !known {
		m, err := w.reader.ReadManifest(ctx, h)
		if err == nil {
			err = m.CheckOf(content.NewCodec(), h)
		}
		broken := errors.Is(err, content.ErrCorrupt) && !errors.Is(err, content.ErrUnknown) || errors.Is(err, content.ErrNotFound)
		if err != nil && !broken {
			return w.damaged(ctx, root{h, w.group.Packs}, fmt.Errorf("the manifest of map %s: %w", h.Root.Map, err))
		}
		for _, p := range m.Packs {
			id := w.group.of(p.ID)
			if w.alive[id] == nil {
				continue
			}
			packs = append(packs, id)
			if err := w.note(pack.Extent{CID: m.Root, Location: pack.Location{Pack: id}}, false); err != nil {
				return err
			}
		}
		if broken { // its map alone says what it needs
			packs = w.group.Packs
		}
		w.named[of] = packs
	}
	if len(packs) == 0 {
		return nil
	}
	return w.node(ctx, root{h, packs}, h.Root.Shape().Depth(), h.Top())
}

// damaged has the packs left that a root may need more of than is known; nil where err says nothing of the root.
func (w *walk) damaged(ctx context.Context, r root, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !content.IsDamage(err) {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range r.packs {
		w.left[id] = fmt.Errorf("what a root needs of it is not known: %w", err)
	}
	return nil
}

// note keeps a frame that is needed, if it is one of the group.
func (w *walk) note(e pack.Extent, must bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	frames := w.alive[w.group.of(e.Pack)]
	if frames == nil {
		return nil
	}
	was, there := frames[e.CID]
	if !there {
		w.count++
	}
	if w.count > FramesMax {
		return fmt.Errorf("%w: more than %d frames", content.ErrNoSpace, FramesMax)
	}
	frames[e.CID] = was || must
	return nil
}

// first reports whether nobody has looked below a node yet.
func (w *walk) first(p pack.Pair) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := [2]content.CID{p.Node.CID, p.Page.CID}
	_, there := w.seen[key]
	if !there && len(w.seen) < seenMax {
		w.seen[key] = struct{}{}
	}
	return !there
}

// node walks the map from a node on down. Nodes of level 1 are read by others meanwhile: most are.
func (w *walk) node(ctx context.Context, r root, level int, p pack.Pair) error {
	if p.Node.CID.IsHole() {
		return nil
	}
	if err := errors.Join(w.note(p.Node, true), w.note(p.Page, true), ctx.Err()); err != nil {
		return err
	}
	if !w.first(p) {
		return nil
	}
	if level == 1 {
		w.reads.Go(func() error { return w.children(ctx, r, level, p) })
		return nil
	}
	return w.children(ctx, r, level, p)
}

func (w *walk) children(ctx context.Context, r root, level int, p pack.Pair) error {
	n, err := w.reader.ReadNode(ctx, r.Scope, level, p)
	if err != nil {
		return w.damaged(ctx, r, err)
	}
	for i := range n.Page.Len() {
		if pair, ok := n.Page.ChildPair(n.Node, i); ok {
			err = w.node(ctx, r, level-1, pair)
		} else if at, ok := n.Page.Child(i); ok {
			err = w.note(pack.Extent{CID: n.Node.Entry(i), Location: at}, true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
