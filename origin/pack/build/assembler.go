package build

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

// assembler puts objects into packs: chunks as they come, then the map above them. It is owned by the
// sequencer while chunks come, then by Finish; only locate and placed are for any goroutine.
type assembler struct {
	cfg   Config
	depth int // of the map; before finish, what it may be at most
	enc   *zstd.Encoder

	packs  pack.Table
	refs   tally // of what the map refers to
	placed placed

	w       *pack.Writer // the pack being filled, nil when none is
	sending sync.Map     // IDs of own packs that are not in the bucket yet
	buffers chan []byte  // free memory for packs
	ship    func(pack.Sealed)

	waiting map[uint64]named // by index: stored, not yet in the map

	mappers []mapper // by level, from 1
	held    [][]made // by level, from 1: nodes that wait for the end of the pack
	bytes   int      // of level 1 in held
	top     pack.Child

	manifest pack.Manifest // as finish has stored it
	stats    *counter
}

func newAssembler(cfg Config, shape content.Shape, enc *zstd.Encoder, stats *counter) *assembler {
	a := &assembler{
		cfg:     cfg,
		depth:   shape.Depth(),
		enc:     enc,
		placed:  placed{where: make(map[content.CID]pack.Place)},
		buffers: make(chan []byte, packsInMemory),
		mappers: make([]mapper, shape.Depth()+1),
		held:    make([][]made, shape.Depth()+1),
		stats:   stats,
		waiting: make(map[uint64]named),
		w:       cfg.into,
	}
	for level := range a.mappers {
		a.mappers[level].level = level
	}
	for range packsInMemory {
		a.buffers <- nil
	}
	if cfg.Base != nil {
		cfg.Base.countInto(a)
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

// stored is a chunk that has its place: whether it is the first of its name, and had to be stored.
type stored struct {
	at           pack.Place
	first, isNew bool
}

func (p stored) count(s *Stats) {
	if p.first {
		s.StoredBytes += uint64(p.at.Length)
	}
	if p.isNew {
		s.NewChunks++
		s.NewRawBytes += uint64(p.at.Raw)
		s.NewStoredBytes += uint64(p.at.Length)
	}
}

func (p stored) name(s *Stats) {
	p.count(s)
	s.Chunks++
	s.RawBytes += uint64(p.at.Raw)
}

// chunk places one chunk, and names it in the map.
func (a *assembler) chunk(ctx context.Context, j *job) error {
	put, err := a.store(ctx, j)
	if err != nil {
		return err
	}
	a.stats.add(put.name)
	return a.name(ctx, j.index, pack.Child{CID: j.cid, At: put.at})
}

// store places a chunk, unless it lies somewhere already.
func (a *assembler) store(ctx context.Context, j *job) (stored, error) {
	if at, again := a.placed.get(j.cid); again {
		return stored{at: at}, nil
	}
	isNew := j.known.IsZero()
	if isNew {
		if err := a.room(ctx, a.cfg.PackSize, len(j.frame)); err != nil {
			return stored{}, err
		}
		j.known = a.w.Add(pack.RoleChunk, j.cid, len(j.raw), j.codec, j.frame)
	}
	at := a.packs.Place(j.known)
	a.placed.put(j.cid, at)
	return stored{at, true, isNew}, nil
}

func (a *assembler) name(ctx context.Context, index uint64, c pack.Child) error {
	a.refs.count(c, 1)
	m, ok := a.mappers[1].add(&a.packs, index, c)
	if !ok {
		return nil
	}
	return a.hold(ctx, m)
}

// named is a chunk that lies somewhere; a hole lies nowhere.
type named struct {
	cid content.CID
	at  pack.Place
}

// ahead remembers a chunk that is stored before its turn.
func (a *assembler) ahead(index uint64, c named) error {
	if _, twice := a.waiting[index]; twice {
		return fmt.Errorf("chunk %d: %w: given twice", index, content.ErrInvalid)
	}
	a.waiting[index] = c
	return nil
}

func (a *assembler) turn(ctx context.Context, index uint64) error {
	c, ok := a.waiting[index]
	if delete(a.waiting, index); !ok {
		return fmt.Errorf("chunk %d: %w: it was not given ahead", index, content.ErrInvalid)
	}
	if c.cid.IsHole() {
		return nil
	}
	a.stats.add(stored{at: c.at}.name)
	return a.name(ctx, index, pack.Child{CID: c.cid, At: c.at})
}

// keptSize is what a kept node takes in memory, about, in bytes.
const keptSize = 256

// hold lets a node wait for the end of the pack, as long as there is room for it.
func (a *assembler) hold(ctx context.Context, m made) error {
	a.held[m.level] = append(a.held[m.level], m)
	if m.level > 1 {
		return nil
	}
	if a.bytes += keptSize + len(m.node.Bytes()) + len(m.page.Bytes()); a.bytes < metaBytesMax {
		return nil
	}
	return a.placeHeld(ctx, 1)
}

// flush ends the node of a level that is being gathered, if any.
func (a *assembler) flush(ctx context.Context, level int) error {
	m, ok := a.mappers[level].flush(&a.packs)
	if !ok {
		return nil
	}
	return a.hold(ctx, m)
}

// keepMap names a subtree that stands already, behind all that came before.
func (a *assembler) keepMap(ctx context.Context, at content.Pos, p pack.Pair) error {
	for level := 1; level < at.Level; level++ {
		if err := errors.Join(a.flush(ctx, level), a.placeHeld(ctx, level)); err != nil {
			return err
		}
	}
	if err := a.flush(ctx, at.Level); err != nil {
		return err
	}
	return a.hold(ctx, made{level: at.Level, index: at.Index, kept: a.childOf(p)})
}

func (a *assembler) childOf(p pack.Pair) pack.Child {
	return pack.Child{CID: p.Node.CID, At: a.packs.Place(p.Node.Location), PageCID: p.Page.CID, Page: a.packs.Place(p.Page.Location)}
}

// room makes sure that the pack being filled takes frames of those lengths without growing beyond limit; else
// it is shipped and another begun. A pack takes at least what it is begun for.
func (a *assembler) room(ctx context.Context, limit int, lengths ...int) error {
	total := 0
	for _, n := range lengths {
		total += n
	}
	if a.w != nil && a.w.Size(len(lengths), total) > limit && !a.w.Empty() {
		if a.w == a.cfg.into {
			return fmt.Errorf("%w: a pack that is shared has no room for all of the root", content.ErrNoSpace)
		}
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
			buf = make([]byte, 0, min(int64(a.cfg.PackSize), a.cfg.root().Size)*9/8+content.RunSize)
		}
		a.w = pack.NewWriter(id, buf)
		a.sending.Store(id, true)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// standing are the keys of the packs in the bucket that the root refers to so far.
func (a *assembler) standing() (keys []string) {
	for _, id := range a.packs.IDs() {
		if _, is := a.sending.Load(id); !is {
			keys = append(keys, id.Key())
		}
	}
	return keys
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
		a.refs.count(c, 1)
		if level == a.depth {
			a.top = c
			continue
		}
		if full, ok := a.mappers[level+1].add(&a.packs, m.index, c); ok {
			a.held[full.level] = append(a.held[full.level], full)
		}
	}
	a.held[level] = a.held[level][:0]
	if level == 1 {
		a.bytes = 0
	}
	return nil
}

// placeNode stores a node with its page behind it, unless the same two lie so somewhere already.
func (a *assembler) placeNode(ctx context.Context, m made) (pack.Child, error) {
	if !m.kept.CID.IsHole() {
		return m.kept, nil
	}
	a.cfg.OnObject(m.node)
	a.cfg.OnObject(m.page)
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

func (a *assembler) finish(ctx context.Context, root content.Root) (pack.Head, error) {
	a.depth = root.Shape().Depth()
	for level := 1; level <= a.depth; level++ {
		if err := errors.Join(a.flush(ctx, level), a.placeHeld(ctx, level)); err != nil {
			return pack.Head{}, err
		}
	}
	root.Map = a.top.CID
	head := pack.Head{Root: root, Scope: a.cfg.Scope}
	if !a.top.CID.IsHole() {
		head.Node = pack.Extent{CID: a.top.CID, Location: a.packs.Location(a.top.At)}
		head.Page = pack.Extent{CID: a.top.PageCID, Location: a.packs.Location(a.top.Page)}
	}
	encoded, err := root.Encode(a.cfg.Codec)
	if err != nil {
		return pack.Head{}, err
	}
	rootAt, err := a.placeObject(ctx, pack.RoleRoot, encoded)
	if err != nil {
		return pack.Head{}, err
	}
	a.manifest = pack.Manifest{Root: encoded.CID(), Page: head.Page.CID, Lineage: a.cfg.Lineage}
	if head.Manifest, err = a.placeManifest(ctx, rootAt.Pack); err != nil {
		return pack.Head{}, err
	}
	if a.w != nil && a.w != a.cfg.into {
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
	return pack.Extent{CID: v.CID(), Location: at}, nil
}

// placeManifest stores the manifest, which names its own pack too, and that of the
// root. When nothing else is new, the same manifest may be there already.
func (a *assembler) placeManifest(ctx context.Context, root pack.ID) (pack.Extent, error) {
	v, err := a.encodeManifest(root)
	if err != nil {
		return pack.Extent{}, err
	}
	if at, ok := a.find(ctx, v.CID()); ok {
		if _, ok := a.manifest.Pack(at.Pack); ok {
			return pack.Extent{CID: v.CID(), Location: at}, nil
		}
	}
	if err := a.room(ctx, a.metaLimit(), len(v.Bytes())+manifestMore); err != nil {
		return pack.Extent{}, err
	}
	if v, err = a.encodeManifest(root, a.w.ID()); err != nil {
		return pack.Extent{}, err
	}
	frame, codec := pack.EncodeFrame(a.enc, nil, v.Bytes())
	return pack.Extent{CID: v.CID(), Location: a.w.Add(pack.RoleManifest, v.CID(), len(v.Bytes()), codec, frame)}, nil
}

// manifestMore is what one more pack adds to a manifest, at most, in bytes.
const manifestMore = pack.IDSizeMax + 8

func (a *assembler) encodeManifest(others ...pack.ID) (v content.Verified, err error) {
	if a.manifest.Packs, err = a.refs.sorted(a.packs.IDs(), others); err != nil {
		return v, err
	}
	return a.manifest.Encode(a.cfg.Codec)
}
