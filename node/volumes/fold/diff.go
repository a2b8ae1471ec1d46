package fold

import (
	"context"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/pack/build"
)

// Nodes reads a node of a map.
type Nodes build.ReadNode

// Diff calls differs with each chunk from an index on that two roots have not alike, rising,
// until that fails. It reads no chunk, and of the maps what lies above a difference; nil is a
// blank disk. The roots have chunks of one size.
func (read Nodes) Diff(ctx context.Context, a, b *pack.Head, from uint64, differs func(index uint64) error) error {
	d := diff{ctx, read, [2]side{sideOf(a), sideOf(b)}, from, differs}
	top := max(d.sides[0].depth, d.sides[1].depth)
	return d.node(content.Pos{Level: top}, [2]pack.Pair{d.sides[0].top, d.sides[1].top})
}

// Walk calls each with the chunks of a root that are not holes, rising, and where they
// lie, until that fails.
func Walk(ctx context.Context, read Nodes, head *pack.Head, each func(index uint64, at pack.Extent) error) error {
	s := sideOf(head)
	d := diff{ctx, read, [2]side{s, {}}, 0, nil}
	return d.chunks(content.Pos{Level: s.depth}, s.top, each)
}

type diff struct {
	ctx     context.Context
	read    Nodes
	sides   [2]side
	from    uint64 // what lies before does not count
	differs func(uint64) error
}

// side is a map.
type side struct {
	scope content.Scope
	depth int
	top   pack.Pair
}

func sideOf(h *pack.Head) side {
	if h == nil {
		return side{depth: 1}
	}
	return side{h.Scope, h.Root.Shape().Depth(), h.Top()}
}

// node compares what lies below a place. Above the top of a smaller map was is that top.
func (d diff) node(at content.Pos, was [2]pack.Pair) error {
	if _, end := at.Chunks(); was[0].Node.CID == was[1].Node.CID || end <= d.from {
		return nil
	}
	var nodes [2]pack.MapNode
	for i, p := range was {
		if at.Level > d.sides[i].depth || p.Node.CID.IsHole() {
			continue
		}
		var err error
		if nodes[i], err = d.read(d.ctx, d.sides[i].scope, at.Level, p); err != nil {
			return err
		}
	}
	for i := range content.MapFanout {
		var err error
		if at.Level > 1 {
			err = d.node(at.Child(i), [2]pack.Pair{d.child(0, at, was[0], nodes[0], i), d.child(1, at, was[1], nodes[1], i)})
		} else if at.Child(i).Index >= d.from && nodes[0].Node.Entry(i) != nodes[1].Node.Entry(i) {
			err = d.differs(at.Child(i).Index)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d diff) child(s int, at content.Pos, was pack.Pair, n pack.MapNode, i int) pack.Pair {
	switch {
	case at.Level > d.sides[s].depth && i == 0:
		return was
	case n.Page == nil:
		return pack.Pair{}
	}
	p, _ := n.Page.ChildPair(n.Node, i)
	return p
}

func (d diff) chunks(at content.Pos, was pack.Pair, each func(uint64, pack.Extent) error) error {
	if was.Node.CID.IsHole() {
		return nil
	}
	n, err := d.read(d.ctx, d.sides[0].scope, at.Level, was)
	if err != nil {
		return err
	}
	for i := 0; i < n.Page.Len() && err == nil; i++ {
		where, there := n.Page.Child(i)
		switch {
		case at.Level > 1:
			err = d.chunks(at.Child(i), d.child(0, at, was, n, i), each)
		case there:
			err = each(at.Child(i).Index, pack.Extent{CID: n.Node.Entry(i), Location: where})
		}
	}
	return err
}
