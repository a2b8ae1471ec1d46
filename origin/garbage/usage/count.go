package usage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/catalog"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/garbage"
	"github.com/grangemesh/grange/origin/pack"
)

const (
	// manifestsAtOnce bounds the manifests that are read at once.
	manifestsAtOnce = 8
	// shared stands for the number of a name where there are several.
	shared = ^uint32(0)

	// What each takes of the memory, about, in bytes.
	packCosts, nameCosts, rootCosts, segmentCosts, refCosts = 120, 400, 120, 120, 4
)

// count is what is known so far. Packs, names and roots are called by their numbers.
type count struct {
	cfg    Config
	codec  *content.Codec
	reader *pack.Reader
	scopes []string
	report Report

	mu       sync.Mutex // guards what follows, while manifests are read
	left     int64      // bytes of memory
	numbers  map[[16]byte]uint32
	packs    []packed
	roots    []root
	known    map[[16]byte]uint32 // roots by their heads
	rootOf   map[uint32]uint32   // of names that have one
	segments map[content.VolumeID][]content.SegmentRef
	volumes  map[content.VolumeID]string
}

// packed is a pack that is there.
type packed struct {
	size  int64
	needs int64  // the most that roots need of it
	owner uint32 // the number of the name that refers to it, plus 1; 0 is none, shared are several
	scope uint16
}

type root struct {
	stored int64
	packs  []uint32
	owner  uint32 // as of a pack
}

func newCount(cfg Config, memory int64) *count {
	return &count{
		cfg: cfg, codec: content.NewCodec(), reader: pack.NewReader(cfg.Bucket), left: memory,
		numbers: make(map[[16]byte]uint32), known: make(map[[16]byte]uint32), rootOf: make(map[uint32]uint32),
		segments: make(map[content.VolumeID][]content.SegmentRef), volumes: make(map[content.VolumeID]string),
		report: Report{Names: []Name{}, Scopes: []Scope{}, Volumes: []Volume{}, Broken: []garbage.Broken{}},
	}
}

func (c *count) run(ctx context.Context) (Report, error) {
	for _, step := range []func(context.Context) error{c.list, c.records, c.journals, c.indexes} {
		if err := step(ctx); err != nil {
			return Report{}, err
		}
	}
	c.own()
	c.sum()
	return c.report, nil
}

// take takes memory. Called with mu, where others count too.
func (c *count) take(n int64) error {
	if c.left -= n; c.left < 0 {
		return fmt.Errorf("%w: there are more names and packs than the memory of %d MiB is for that counts them", content.ErrNoSpace, MemoryMax>>20)
	}
	return nil
}

func (c *count) tell() {
	if c.cfg.Progress != nil {
		c.cfg.Progress(c.report.Records.Objects, int64(len(c.packs)))
	}
}

// list notes all packs.
func (c *count) list(ctx context.Context) error {
	for info, err := range c.cfg.Bucket.List(ctx, string(content.KeyPacks), "") {
		if err != nil {
			return fmt.Errorf("list packs: %w", err)
		}
		id, err := pack.ParseKey(info.Key)
		if err != nil {
			continue // not of ours
		}
		if err := c.take(packCosts); err != nil {
			return err
		}
		scope := id.Scope().String()
		at := slices.Index(c.scopes, scope)
		if at < 0 {
			at, c.scopes = len(c.scopes), append(c.scopes, scope)
		}
		c.numbers[content.HalfSum([]byte(id))] = uint32(len(c.packs))
		c.packs = append(c.packs, packed{size: info.Size, scope: uint16(at)})
		if len(c.packs)%bucket.PageSize == 0 {
			c.tell()
		}
	}
	return nil
}

// records notes what each names, and reads the manifests.
func (c *count) records(ctx context.Context) error {
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(manifestsAtOnce)
	var err error
	for rec, bad := range c.cfg.RecordsAfter(reading, "") {
		if err = bad; err != nil {
			break
		}
		c.report.Records.Add(rec.Size)
		c.tell()
		if rec.Err != nil {
			c.broken(rec.Label(), rec.Err)
			continue
		}
		if rec.Envelope.Tombstone || rec.Kind == content.KindCollection || rec.Kind == content.KindRevocation {
			continue
		}
		number, isNew, taken := c.name(rec)
		if err = taken; err != nil {
			break
		}
		if isNew {
			group.Go(func() error { return c.root(reading, number, rec) })
		}
	}
	if waited := group.Wait(); waited != nil {
		err = waited // the cause, where err is that the list was told to end
	}
	return err
}

func (c *count) broken(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Broken = append(c.report.Broken, garbage.Broken{Name: name, Error: content.Line(err)})
}

// name notes one, and returns the number of its root if that is new.
func (c *count) name(rec garbage.Record) (number uint32, isNew bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := Name{Name: rec.Label(), Kind: rec.Kind, Scope: content.Mesh().String()}
	if farm := rec.Envelope.Farm; farm != "" {
		n.Scope = content.Farm(farm).String()
	}
	if rec.Kind == content.KindVolume {
		c.volumes[rec.Volume] = n.Name
	}
	for _, ref := range rec.Segments {
		n.Segments += ref.Bytes + int64(ref.Tails)*catalog.TailHeader
		if of := c.segments[ref.Volume]; !slices.Contains(of, ref) {
			c.segments[ref.Volume] = append(of, ref)
			err = cmp.Or(err, c.take(segmentCosts))
		}
	}
	own := uint32(len(c.report.Names))
	if rec.Head != nil {
		n.Scope = rec.Head.Scope.String()
		head, bad := rec.Head.Encode(c.codec)
		if bad != nil {
			return 0, false, bad
		}
		key := content.HalfSum(head)
		if number, isNew = c.known[key]; isNew { // known, so far
			c.roots[number].owner, isNew = shared, false
		} else {
			number, isNew = uint32(len(c.roots)), true
			c.known[key], c.roots = number, append(c.roots, root{owner: own + 1})
			err = cmp.Or(err, c.take(rootCosts))
		}
		c.rootOf[own] = number
	}
	c.report.Names = append(c.report.Names, n)
	return number, isNew, cmp.Or(err, c.take(nameCosts))
}

// root reads the manifest of one.
func (c *count) root(ctx context.Context, number uint32, rec garbage.Record) error {
	m, err := c.reader.ReadManifest(ctx, *rec.Head)
	if err == nil {
		err = m.CheckOf(content.NewCodec(), *rec.Head)
	}
	if errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrCorrupt) {
		c.broken(rec.Label(), err)
		return nil
	}
	if err != nil {
		return err
	}
	r := root{}
	for _, p := range m.Packs {
		needs := int64(p.Bytes) + 2*int64(p.Refs)*pack.EntrySize // a node has a page
		if p.ID == rec.Head.Manifest.Pack {
			needs += int64(rec.Head.Manifest.Length) + content.RootSizeMax + 2*pack.EntrySize
		}
		r.stored += int64(p.Bytes)
		if r.packs, err = c.refer(ctx, r.packs, p.ID, needs); err != nil {
			return err
		}
	}
	slices.Sort(r.packs) // several may have moved into one
	r.packs = slices.Clip(slices.Compact(r.packs))
	c.mu.Lock()
	defer c.mu.Unlock()
	r.owner = c.roots[number].owner
	c.roots[number] = r
	return c.take(int64(len(r.packs)) * refCosts)
}

// refer adds a pack to those of a root, and the one that has taken over what it had.
func (c *count) refer(ctx context.Context, to []uint32, id pack.ID, needs int64) ([]uint32, error) {
	number, size, ok := c.there(id, needs)
	if !ok {
		return to, nil // it came later, or is missing
	}
	if to = append(to, number); size > pack.SizeMin {
		return to, nil
	}
	d, err := c.reader.Taker(ctx, id)
	switch {
	case errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrForbidden):
		c.broken("pack:"+string(id), err)
		return to, nil
	case err != nil:
		return nil, err
	}
	if number, _, ok = c.there(d.Pack, needs); ok {
		to = append(to, number)
	}
	return to, nil
}

// there returns a pack, of which a root needs so much.
func (c *count) there(id pack.ID, needs int64) (number uint32, size int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number, ok = c.numbers[content.HalfSum([]byte(id))]; ok {
		c.packs[number].needs += needs
		size = c.packs[number].size
	}
	return number, size, ok
}

// journals counts segments, by the volumes that wrote them.
func (c *count) journals(ctx context.Context) error {
	for info, err := range c.cfg.Bucket.List(ctx, string(content.KeyJournals), "") {
		if err != nil {
			return fmt.Errorf("list segments: %w", err)
		}
		ref, tail, err := content.ParseJournalKey(info.Key)
		if err != nil {
			continue // not of ours
		}
		c.report.Segments.Add(info.Size)
		n, id := len(c.report.Volumes), ref.Volume.String()
		if n == 0 || c.report.Volumes[n-1].ID != id { // they come by volume
			if err := c.take(nameCosts); err != nil {
				return err
			}
			c.report.Volumes = append(c.report.Volumes, Volume{ID: id, Name: c.volumes[ref.Volume]})
			n++
		}
		v := &c.report.Volumes[n-1]
		v.Amount.Add(info.Size)
		if slices.ContainsFunc(c.segments[ref.Volume], func(s content.SegmentRef) bool {
			if tail {
				return s.Tails > 0 && s.Epoch == ref.Epoch && s.After.Number <= ref.After.Number && ref.After.Number < s.Through.Number
			}
			return s.Tails == 0 && s.Key() == info.Key
		}) {
			v.Named.Add(info.Size)
		}
	}
	return nil
}

func (c *count) indexes(ctx context.Context) error {
	for info, err := range c.cfg.Bucket.List(ctx, string(content.KeyIndexes), "") {
		if err != nil {
			return fmt.Errorf("list indexes: %w", err)
		}
		c.report.Indexes.Add(info.Size)
	}
	return nil
}

// own finds out whose each pack is.
func (c *count) own() {
	for _, r := range c.roots {
		c.report.Stored += r.stored
		for _, number := range r.packs {
			if p := &c.packs[number]; p.owner == 0 {
				p.owner = r.owner
			} else if p.owner != r.owner {
				p.owner = shared
			}
		}
	}
	for name, number := range c.rootOf {
		r, n := c.roots[number], &c.report.Names[name]
		n.Stored = r.stored
		for _, number := range r.packs {
			if p := c.packs[number]; p.owner == shared {
				n.Shared += p.size
			} else {
				n.Own += p.size
			}
		}
	}
}

// sum adds up what lives and what is dead.
func (c *count) sum() {
	scopes := make(map[uint16]*Scope)
	for _, p := range c.packs {
		s := scopes[p.scope]
		if s == nil {
			s = &Scope{Scope: c.scopes[p.scope]}
			scopes[p.scope] = s
		}
		if p.owner == 0 {
			c.report.Dead.Add(p.size)
			s.Dead.Add(p.size)
			continue
		}
		c.report.Live.Add(p.size)
		s.Live.Add(p.size)
		if p.size > pack.SizeMin { // beside what is needed it has a footer, and a signature
			c.report.DeadWithin += max(0, p.size-p.needs-pack.SizeMin-content.RecordSizeMax)
		}
	}
	for _, s := range slices.SortedFunc(maps.Values(scopes), func(a, b *Scope) int { return cmp.Compare(a.Scope, b.Scope) }) {
		c.report.Scopes = append(c.report.Scopes, *s)
	}
}
