package pack

import (
	"context"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
)

// assembler puts objects into packs: chunks as they come, then the map above
// them. It is owned by the sequencer while chunks come, then by Finish; only
// locate and placed are for any goroutine.
type assembler struct {
	cfg  BuilderConfig
	root content.Root
	enc  *zstd.Encoder

	packs  packTable // the packs that the image refers to, no others
	placed placed

	w       *writer     // the pack being filled, nil when none is
	buffers chan []byte // free memory for packs
	ship    func(sealed)

	mappers []mapper // by level, from 1
	held    [][]made // by level, from 1: nodes that wait for the end of the pack
	bytes   int      // of level 1 in held
	top     child

	chunks, stored uint64 // different chunks of the image, and their frames
	stats          *counter
}

func newAssembler(cfg BuilderConfig, root content.Root, enc *zstd.Encoder, stats *counter) *assembler {
	a := &assembler{
		cfg:     cfg,
		root:    root,
		enc:     enc,
		placed:  placed{where: make(map[content.CID]place)},
		buffers: make(chan []byte, packsInMemory),
		mappers: make([]mapper, root.Depth()+1),
		held:    make([][]made, root.Depth()+1),
		stats:   stats,
	}
	for level := range a.mappers {
		a.mappers[level].level = level
	}
	for range packsInMemory {
		a.buffers <- nil
	}
	return a
}

// release gives back the memory of a pack that was shipped.
func (a *assembler) release(s sealed) { a.buffers <- s.bytes[:0] }

// locate asks Known for an object that the image may refer to.
func (a *assembler) locate(id content.CID) (Location, bool) {
	if a.cfg.Known == nil {
		return Location{}, false
	}
	l, ok := a.cfg.Known.Locate(id)
	if !ok || !l.Pack.Scope().Covers(a.cfg.Scope) || l.check() != nil {
		return Location{}, false
	}
	return l, true
}

// find returns where an object is that needs not be stored again.
func (a *assembler) find(id content.CID) (Location, bool) {
	if at, ok := a.placed.get(id); ok {
		return a.packs.location(at), true
	}
	return a.locate(id)
}

// chunk places one chunk.
func (a *assembler) chunk(ctx context.Context, j *job) error {
	size := uint64(len(j.raw))
	at, again := a.placed.get(j.cid)
	isNew := !again && j.known.IsZero()
	if isNew {
		if err := a.room(ctx, a.cfg.PackSize, len(j.frame)); err != nil {
			return err
		}
		at = a.packs.place(a.w.add(RoleChunk, j.cid, len(j.raw), j.codec, j.frame))
	} else if !again {
		at = a.packs.place(j.known)
	}
	if !again {
		a.placed.put(j.cid, at)
		a.chunks++
		a.stored += uint64(at.length)
	}
	a.stats.add(func(s *Stats) {
		s.Chunks++
		s.RawBytes += size
		if isNew {
			s.NewChunks++
			s.NewRawBytes += size
			s.NewStoredBytes += uint64(len(j.frame))
		}
	})
	m, ok := a.mappers[1].add(&a.packs, j.index, child{cid: j.cid, at: at})
	if !ok {
		return nil
	}
	a.hold(m)
	if a.bytes < metaBytesMax {
		return nil
	}
	return a.placeHeld(ctx, 1)
}

func (a *assembler) hold(m made) {
	a.held[m.level] = append(a.held[m.level], m)
	if m.level == 1 {
		a.bytes += len(m.node.Bytes()) + len(m.page.Bytes())
	}
}

// room makes sure that the pack being filled takes frames of those lengths
// without growing beyond limit; else it is shipped and another begun. A pack
// takes at least what it is begun for.
func (a *assembler) room(ctx context.Context, limit int, lengths ...int) error {
	total := 0
	for _, n := range lengths {
		total += n
	}
	if a.w != nil && a.w.size(len(lengths), total) > limit && !a.w.empty() {
		a.shipPack()
	}
	if a.w != nil {
		return nil
	}
	id, err := newID(a.cfg.Scope, a.cfg.Now(), a.cfg.Random)
	if err != nil {
		return err
	}
	select {
	case buf := <-a.buffers:
		if buf == nil { // what is never written takes no memory
			buf = make([]byte, 0, min(int64(a.cfg.PackSize), a.root.Size)*9/8+content.RunSize)
		}
		a.w = newWriter(id, buf)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *assembler) shipPack() {
	s := a.w.seal("")
	a.w = nil
	a.ship(s)
}

// metaLimit lets the last pack grow, so that the metadata of an ordinary image
// stands in the pack of its last chunks.
func (a *assembler) metaLimit() int { return a.cfg.PackSize * 3 / 2 }

// placeHeld places the nodes of one level that wait, each with its page.
func (a *assembler) placeHeld(ctx context.Context, level int) error {
	for _, m := range a.held[level] {
		c, err := a.placeNode(ctx, m)
		if err != nil {
			return fmt.Errorf("place %s: %w", content.Pos{Level: m.level, Index: m.index}, err)
		}
		if level == a.root.Depth() {
			a.top = c
			continue
		}
		if full, ok := a.mappers[level+1].add(&a.packs, m.index, c); ok {
			a.hold(full)
		}
	}
	a.held[level] = a.held[level][:0]
	if level == 1 {
		a.bytes = 0
	}
	return nil
}

// placeNode stores a node with its page behind it, unless the same two lie so
// somewhere already.
func (a *assembler) placeNode(ctx context.Context, m made) (child, error) {
	node, okNode := a.find(m.node.CID())
	page, okPage := a.find(m.page.CID())
	if !okNode || !okPage || node.Pack != page.Pack || node.End() != page.Offset {
		nodeFrame, nodeCodec := encodeFrame(a.enc, nil, m.node.Bytes())
		pageFrame, pageCodec := encodeFrame(a.enc, nil, m.page.Bytes())
		if err := a.room(ctx, a.metaLimit(), len(nodeFrame), len(pageFrame)); err != nil {
			return child{}, err
		}
		node = a.w.add(RoleNode, m.node.CID(), len(m.node.Bytes()), nodeCodec, nodeFrame)
		page = a.w.add(RolePage, m.page.CID(), len(m.page.Bytes()), pageCodec, pageFrame)
	}
	c := child{m.node.CID(), a.packs.place(node), m.page.CID(), a.packs.place(page)}
	a.placed.put(c.cid, c.at)
	a.placed.put(c.pageCID, c.page)
	return c, nil
}

// finish places the map, root and manifest and ships the last pack.
func (a *assembler) finish(ctx context.Context) (Head, error) {
	for level := 1; level <= a.root.Depth(); level++ {
		if m, ok := a.mappers[level].flush(&a.packs); ok {
			a.hold(m)
		}
		if err := a.placeHeld(ctx, level); err != nil {
			return Head{}, err
		}
	}
	a.root.Map = a.top.cid
	head := Head{Root: a.root, Scope: a.cfg.Scope}
	if !a.top.cid.IsHole() {
		head.Node = Extent{a.top.cid, a.packs.location(a.top.at)}
		head.Page = Extent{a.top.pageCID, a.packs.location(a.top.page)}
	}
	root, err := a.root.Encode(a.cfg.Codec)
	if err != nil {
		return Head{}, err
	}
	if _, err := a.placeObject(ctx, RoleRoot, root); err != nil {
		return Head{}, err
	}
	manifest := Manifest{Root: root.CID(), Page: head.Page.CID, Lineage: a.cfg.Lineage, Chunks: a.chunks, Stored: a.stored}
	if head.Manifest, err = a.placeManifest(ctx, manifest); err != nil {
		return Head{}, err
	}
	if a.w != nil {
		a.shipPack()
	}
	return head, head.Validate()
}

func (a *assembler) placeObject(ctx context.Context, role Role, v content.Verified) (Extent, error) {
	at, ok := a.find(v.CID())
	if !ok {
		frame, codec := encodeFrame(a.enc, nil, v.Bytes())
		if err := a.room(ctx, a.metaLimit(), len(frame)); err != nil {
			return Extent{}, err
		}
		at = a.w.add(role, v.CID(), len(v.Bytes()), codec, frame)
	}
	a.packs.place(at)
	return Extent{v.CID(), at}, nil
}

// placeManifest stores the manifest, which names its own pack too. When nothing
// else is new, the same manifest may be there already.
func (a *assembler) placeManifest(ctx context.Context, m Manifest) (Extent, error) {
	m.Packs = a.packs.sorted()
	v, err := m.Encode(a.cfg.Codec)
	if err != nil {
		return Extent{}, err
	}
	if at, ok := a.find(v.CID()); ok && a.packs.has(at.Pack) {
		return Extent{v.CID(), at}, nil
	}
	if err := a.room(ctx, a.metaLimit(), len(v.Bytes())+idSizeMax); err != nil {
		return Extent{}, err
	}
	a.packs.number(a.w.id)
	m.Packs = a.packs.sorted()
	if v, err = m.Encode(a.cfg.Codec); err != nil {
		return Extent{}, err
	}
	frame, codec := encodeFrame(a.enc, nil, v.Bytes())
	return Extent{v.CID(), a.w.add(RoleManifest, v.CID(), len(v.Bytes()), codec, frame)}, nil
}
