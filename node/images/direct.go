package images

import (
	"context"
	"fmt"
	"slices"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// runsAhead is how many runs are asked for behind one that is wanted: enough for a store that is far away.
	runsAhead = 8
	// runsKept are kept unpacked, some 4 MiB each, for who reads what lies beside.
	runsKept = 24
	// leavesKept are nodes of the map, each of 1,024 chunks.
	leavesKept = 64
)

// direct reads the chunks of a root from a bucket, without other members: in runs, and ahead of who reads them in order. What
// has come is kept in the node's cache, so that it is not read again after a crash.
type direct struct {
	ctx     context.Context // of the reads
	im      *Images
	from    *pack.Reader
	head    pack.Head
	count   func(n int)
	reading sync.WaitGroup

	mu     sync.Mutex // guards what follows
	leaves *lru.Cache[uint64, func() (*leaf, error)]
	runs   *lru.Cache[part, func() (map[content.CID][]byte, error)]
}

// leaf is a node of the map, with the chunks in each run that they lie in, in the order of the first of each.
type leaf struct {
	pack.MapNode
	number uint64
	frames [][]pack.Extent
	at     map[pack.Run]int // in frames
}

// part is a run of a leaf's.
type part struct {
	leaf uint64
	run  int
}

// newDirect reads until ctx ends; count is told of the bytes that come.
func (im *Images) newDirect(ctx context.Context, store bucket.Bucket, head pack.Head, count func(int)) *direct {
	d := &direct{ctx: ctx, im: im, from: pack.NewReader(store), head: head, count: count}
	d.leaves, _ = lru.New[uint64, func() (*leaf, error)](leavesKept) // it fails for sizes below 1 alone
	d.runs, _ = lru.New[part, func() (map[content.CID][]byte, error)](runsKept)
	return d
}

// read is a tree.ReadChunk.
func (d *direct) read(ctx context.Context, index uint64, off int, p []byte) error {
	l, err := d.leaf(index / content.MapFanout)()
	if err != nil {
		return err
	}
	where, ok := l.Page.Child(int(index % content.MapFanout))
	if !ok { // a hole
		clear(p)
		return nil
	}
	id := l.Node.Entry(int(index % content.MapFanout))
	if d.im.cfg.Cache.ReadAt(id, p, off) == nil {
		return ctx.Err()
	}
	chunks, err := d.run(l, l.at[where.Run()])()
	if err == nil && chunks[id] == nil { // it was in the cache when the rest was read
		chunks, err = d.fetch([]pack.Extent{{CID: id, Location: where}}, false)
	}
	if err != nil {
		return err
	}
	raw := chunks[id]
	if off+len(p) > len(raw) {
		return fmt.Errorf("chunk %d: %w: it has %d bytes, not %d", index, content.ErrCorrupt, len(raw), off+len(p))
	}
	copy(p, raw[off:])
	return ctx.Err()
}

// leaf returns what waits for a node of the map.
func (d *direct) leaf(n uint64) func() (*leaf, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	got, ok := d.leaves.Get(n)
	if !ok {
		got = sync.OnceValues(func() (*leaf, error) { return d.climb(n) })
		d.leaves.Add(n, got)
	}
	return got
}

// climb reads a node of the map, and those that lead to it.
func (d *direct) climb(n uint64) (*leaf, error) {
	l, pair := &leaf{number: n, at: map[pack.Run]int{}}, d.head.Top()
	for level := d.head.Root.Shape().Depth(); level > 0; level-- {
		var err error
		if l.MapNode, err = pack.ReadNode(d.ctx, d.from, d.head.Scope, level, pair); err != nil {
			return nil, err
		}
		if level > 1 {
			below := n
			for range level - 2 {
				below /= content.MapFanout
			}
			pair, _ = l.Page.ChildPair(l.Node, int(below%content.MapFanout))
		}
	}
	for i := range l.Page.Len() {
		where, ok := l.Page.Child(i)
		if !ok {
			continue
		}
		k, seen := l.at[where.Run()]
		if !seen {
			k = len(l.frames)
			l.at[where.Run()], l.frames = k, append(l.frames, nil)
		}
		l.frames[k] = append(l.frames[k], pack.Extent{CID: l.Node.Entry(i), Location: where})
	}
	return l, nil
}

// run returns what waits for a run, which is read by now, as are those behind it.
func (d *direct) run(l *leaf, k int) func() (map[content.CID][]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ahead := min(k+runsAhead, len(l.frames)-1); ahead >= k; ahead-- {
		if at := (part{l.number, ahead}); !d.runs.Contains(at) {
			got := sync.OnceValues(func() (map[content.CID][]byte, error) { return d.fetch(l.frames[ahead], true) })
			d.runs.Add(at, got)
			d.reading.Go(func() { _, _ = got() })
		}
	}
	got, _ := d.runs.Get(part{l.number, k})
	return got
}

// fetch reads chunks, but for those that are here.
func (d *direct) fetch(frames []pack.Extent, lacking bool) (map[content.CID][]byte, error) {
	if lacking {
		frames = slices.DeleteFunc(slices.Clone(frames), func(e pack.Extent) bool { return d.im.cfg.Cache.Has(e.CID) })
	}
	if len(frames) == 0 {
		return nil, nil
	}
	got, err := d.from.ReadFrames(d.ctx, frames)
	out, keep := make(map[content.CID][]byte, len(got)), d.im.Keep(d.head.Scope)
	for i, v := range got {
		keep(v)
		out[v.CID()] = v.Bytes()
		d.count(int(frames[i].Length))
	}
	return out, err
}
