package build

import (
	"context"
	"fmt"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// Base is a root that another is made of.
type Base struct {
	Head     pack.Head
	Manifest pack.Manifest
}

// ReadBase reads what a root is, to be changed.
func ReadBase(ctx context.Context, r *pack.Reader, head pack.Head) (Base, error) {
	m, err := r.ReadManifest(ctx, head)
	return Base{head, m}, err
}

func (b Base) validate(cfg Config) error {
	switch {
	case b.Head.Root.Kind != cfg.Kind || cfg.Kind != content.RootDisk || b.Head.Root.ChunkSize != cfg.ChunkSize || b.Head.Root.Size > cfg.Size:
		return fmt.Errorf("%w: a base of %d bytes in chunks of %d under a root of %d in chunks of %d", content.ErrInvalid, b.Head.Root.Size, b.Head.Root.ChunkSize, cfg.Size, cfg.ChunkSize)
	case b.Manifest.Page != b.Head.Page.CID:
		return fmt.Errorf("%w: the manifest is of another root than the base", content.ErrInvalid)
	}
	for _, p := range b.Manifest.Packs {
		if !p.ID.Scope().Covers(cfg.Scope) {
			return fmt.Errorf("%w: content of scope %q refers to pack %s", content.ErrForbidden, cfg.Scope, p.ID)
		}
	}
	return nil
}

// countInto begins the manifest with that of the base, but for the place of its top.
func (b Base) countInto(a *assembler) {
	for _, p := range b.Manifest.Packs {
		a.refs.add(a.packs.Number(p.ID), int64(p.Refs), int64(p.Bytes))
	}
	if top := b.Head.Top(); !top.Node.CID.IsHole() {
		a.refs.count(a.childOf(top), -1)
	}
}

// Keep is Add of a chunk that stands in a pack, unread. The caller answers for it that the chunk is there.
func (b *Builder) Keep(ctx context.Context, index uint64, e pack.Extent) error {
	if err := b.mayKeep(e); err != nil {
		return fmt.Errorf("keep chunk %d: %w", index, err)
	}
	if err := b.shape.CheckChunk(int(e.Raw)); err != nil {
		return fmt.Errorf("keep chunk %d: %w", index, err)
	}
	if err := b.may(content.Chunk(index)); err != nil {
		return fmt.Errorf("keep %w", err)
	}
	b.next, b.size = index+1, b.size+int64(e.Raw)
	return b.inTurn(ctx, func(ctx context.Context) error {
		at := b.assembler.packs.Place(e.Location)
		_, again := b.assembler.placed.get(e.CID)
		b.assembler.placed.put(e.CID, at)
		b.stats.add(stored{at: at, first: !again}.name)
		return b.assembler.name(ctx, index, pack.Child{CID: e.CID, At: at})
	})
}

// KeepMap is Keep of all that lies below a map node of the Base, at the place that it
// has there. Only nodes whose parents were given to Drop are kept, and the top.
func (b *Builder) KeepMap(ctx context.Context, at content.Pos, p pack.Pair) error {
	for _, e := range []pack.Extent{p.Node, p.Page} {
		if err := b.mayKeep(e); err != nil {
			return fmt.Errorf("keep %s: %w", at, err)
		}
	}
	if b.cfg.Base == nil || at.Level < 1 || p.Page.Pack != p.Node.Pack || p.Page.Offset != p.Node.End() {
		return fmt.Errorf("keep %s: %w: no map node of a base with its page behind it", at, content.ErrInvalid)
	}
	if err := b.may(at); err != nil {
		return fmt.Errorf("keep %w", err)
	}
	_, b.next = at.Chunks()
	return b.inTurn(ctx, func(ctx context.Context) error { return b.assembler.keepMap(ctx, at, p) })
}

// Drop takes the entries of a map node of the Base out of what the manifest counts. What stays of them is
// kept then. What the Base has below a node that is neither kept nor dropped stays counted.
func (b *Builder) Drop(ctx context.Context, n pack.MapNode) error {
	return b.inTurn(ctx, func(context.Context) error {
		a := b.assembler
		for i := range n.Page.Len() {
			if pair, ok := n.Page.ChildPair(n.Node, i); ok {
				a.refs.count(a.childOf(pair), -1)
			} else if at, ok := n.Page.Child(i); ok {
				a.refs.count(pack.Child{CID: n.Node.Entry(i), At: a.packs.Place(at)}, -1)
			}
		}
		return nil
	})
}

func (b *Builder) mayKeep(e pack.Extent) error {
	if e.CID.IsHole() || !e.Pack.Scope().Covers(b.cfg.Scope) {
		return fmt.Errorf("%w: content of scope %q refers to %s", content.ErrForbidden, b.cfg.Scope, e.Location)
	}
	return e.Check()
}

// inTurn has the sequencer do something behind all that came before.
func (b *Builder) inTurn(ctx context.Context, turn func(context.Context) error) error {
	if b.ended {
		return content.ErrClosed
	}
	j, err := b.begin(ctx)
	if err != nil {
		return err
	}
	j.turn = turn
	j.done <- struct{}{}
	b.order <- j
	return nil
}
