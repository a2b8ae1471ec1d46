package build

import (
	"context"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// assembler puts objects into packs: chunks as they come, then the map above
// them. It is owned by the sequencer while chunks come, then by Finish; only
// locate and placed are for any goroutine.
type assembler struct {
	cfg  Config
	root content.Root
	enc  *zstd.Encoder

	packs  pack.Table // the packs that the image refers to, no others
	placed placed

	w       *pack.Writer // the pack being filled, nil when none is
	buffers chan []byte  // free memory for packs
	ship    func(pack.Sealed)

	mappers []mapper // by level, from 1
	held    [][]made // by level, from 1: nodes that wait for the end of the pack
	bytes   int      // of level 1 in held
	top     pack.Child

	chunks, stored uint64 // different chunks of the image, and their frames
	stats          *counter
}

func newAssembler(cfg Config, root content.Root, enc *zstd.Encoder, stats *counter) *assembler {
	a := &assembler{
		cfg:     cfg,
		root:    root,
		enc:     enc,
		placed:  placed{where: make(map[content.CID]pack.Place)},
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
func (a *assembler) release(s pack.Sealed) { a.buffers <- s.Bytes[:0] }

// locate asks Known for an object that the image may refer to.
func (a *assembler) locate(ctx context.Context, id content.CID) (pack.Location, bool) {
	if a.cfg.Known == nil {
		return pack.Location{}, false
	}
	l, ok := a.cfg.Known.Locate(ctx, id)
	if !ok || !l.Pack.Scope().Covers(a.cfg.Scope) || l.Check() != nil {
		return pack.Location{}, false
	}
	return l, true
}

// find returns where an object is that needs not be stored again.
func (a *assembler) find(ctx context.Context, id content.CID) (pack.Location, bool) {
	if at, ok := a.placed.get(id); ok {
		return a.packs.Location(at), true
	}
	return a.locate(ctx, id)
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
		at = a.packs.Place(a.w.Add(pack.RoleChunk, j.cid, len(j.raw), j.codec, j.frame))
	} else if !again {
		at = a.packs.Place(j.known)
	}
	if !again {
		a.placed.put(j.cid, at)
		a.chunks++
		a.stored += uint64(at.Length)
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
	m, ok := a.mappers[1].add(&a.packs, j.index, pack.Child{CID: j.cid, At: at})
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
	if a.w != nil && a.w.Size(len(lengths), total) > limit && !a.w.Empty() {
		if err := a.shipPack(); err != nil {
			return err
		}
	}
	if a.w != nil {
		return nil
	}
	id, err := pack.NewID(a.cfg.Scope, a.cfg.Now(), a.cfg.Random)
	if err != nil {
		return err
	}
	select {
	case buf := <-a.buffers:
		if buf == nil { // what is never written takes no memory
			buf = make([]byte, 0, min(int64(a.cfg.PackSize), a.root.Size)*9/8+content.RunSize)
		}
		a.w = pack.NewWriter(id, buf)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *assembler) shipPack() error {
	s, err := a.w.Seal(a.cfg.sign())
	if err != nil {
		return err
	}
	a.w = nil
	a.ship(s)
	return nil
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
func (a *assembler) placeNode(ctx context.Context, m made) (pack.Child, error) {
	node, okNode := a.find(ctx, m.node.CID())
	page, okPage := a.find(ctx, m.page.CID())
	if !okNode || !okPage || node.Pack != page.Pack || node.End() != page.Offset {
		nodeFrame, nodeCodec := pack.EncodeFrame(a.enc, nil, m.node.Bytes())
		pageFrame, pageCodec := pack.EncodeFrame(a.enc, nil, m.page.Bytes())
		if err := a.room(ctx, a.metaLimit(), len(nodeFrame), len(pageFrame)); err != nil {
			return pack.Child{}, err
		}
		node = a.w.Add(pack.RoleNode, m.node.CID(), len(m.node.Bytes()), nodeCodec, nodeFrame)
		page = a.w.Add(pack.RolePage, m.page.CID(), len(m.page.Bytes()), pageCodec, pageFrame)
	}
	c := pack.Child{CID: m.node.CID(), At: a.packs.Place(node), PageCID: m.page.CID(), Page: a.packs.Place(page)}
	a.placed.put(c.CID, c.At)
	a.placed.put(c.PageCID, c.Page)
	return c, nil
}

// finish places the map, root and manifest and ships the last pack.
func (a *assembler) finish(ctx context.Context) (pack.Head, error) {
	for level := 1; level <= a.root.Depth(); level++ {
		if m, ok := a.mappers[level].flush(&a.packs); ok {
			a.hold(m)
		}
		if err := a.placeHeld(ctx, level); err != nil {
			return pack.Head{}, err
		}
	}
	a.root.Map = a.top.CID
	head := pack.Head{Root: a.root, Scope: a.cfg.Scope}
	if !a.top.CID.IsHole() {
		head.Node = pack.Extent{CID: a.top.CID, Location: a.packs.Location(a.top.At)}
		head.Page = pack.Extent{CID: a.top.PageCID, Location: a.packs.Location(a.top.Page)}
	}
	root, err := a.root.Encode(a.cfg.Codec)
	if err != nil {
		return pack.Head{}, err
	}
	if _, err := a.placeObject(ctx, pack.RoleRoot, root); err != nil {
		return pack.Head{}, err
	}
	manifest := pack.Manifest{Root: root.CID(), Page: head.Page.CID, Lineage: a.cfg.Lineage, Chunks: a.chunks, Stored: a.stored}
	if head.Manifest, err = a.placeManifest(ctx, manifest); err != nil {
		return pack.Head{}, err
	}
	if a.w != nil {
		if err := a.shipPack(); err != nil {
			return pack.Head{}, err
		}
	}
	return head, head.Validate()
}

func (a *assembler) placeObject(ctx context.Context, role pack.Role, v content.Verified) (pack.Extent, error) {
	at, ok := a.find(ctx, v.CID())
	if !ok {
		frame, codec := pack.EncodeFrame(a.enc, nil, v.Bytes())
		if err := a.room(ctx, a.metaLimit(), len(frame)); err != nil {
			return pack.Extent{}, err
		}
		at = a.w.Add(role, v.CID(), len(v.Bytes()), codec, frame)
	}
	a.packs.Place(at)
	return pack.Extent{CID: v.CID(), Location: at}, nil
}

// placeManifest stores the manifest, which names its own pack too. When nothing
// else is new, the same manifest may be there already.
func (a *assembler) placeManifest(ctx context.Context, m pack.Manifest) (pack.Extent, error) {
	m.Packs = a.packs.Sorted()
	v, err := m.Encode(a.cfg.Codec)
	if err != nil {
		return pack.Extent{}, err
	}
	if at, ok := a.find(ctx, v.CID()); ok && a.packs.Has(at.Pack) {
		return pack.Extent{CID: v.CID(), Location: at}, nil
	}
	if err := a.room(ctx, a.metaLimit(), len(v.Bytes())+pack.IDSizeMax); err != nil {
		return pack.Extent{}, err
	}
	a.packs.Number(a.w.ID())
	m.Packs = a.packs.Sorted()
	if v, err = m.Encode(a.cfg.Codec); err != nil {
		return pack.Extent{}, err
	}
	frame, codec := pack.EncodeFrame(a.enc, nil, v.Bytes())
	return pack.Extent{CID: v.CID(), Location: a.w.Add(pack.RoleManifest, v.CID(), len(v.Bytes()), codec, frame)}, nil
}
