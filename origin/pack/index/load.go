package index

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"iter"
	"maps"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/origin/pack"
	"github.com/grangemesh/grange/origin/trust"
)

const (
	// directoriesMax bounds the packs whose own directories are read because no
	// index object covers them, the newest first: a minute or so of requests. The
	// rest is not known to the index, which costs space, nothing else.
	directoriesMax = 4096
	// directoriesAtOnce bounds the requests in flight.
	directoriesAtOnce = 8
	// uploadMax is how long after a pack was signed its writer may still be sending it: an hour, for slow
	// lines and clocks that differ. One that the store had later was written again, by whomever, and the word
	// for the first tells nothing of what lies there now.
	uploadMax = time.Hour
)

// loader gathers the directories of all packs that are in the bucket.
type loader struct {
	cfg     Config
	packs   map[pack.ID]*gathered
	sources map[string]bool // index objects that were read
	changed bool            // there is more than the cache has
}

// gathered is a pack that is in the bucket, and what was learnt of it.
type gathered struct {
	size     int64
	modified time.Time
	suspect  bool // it was read and found damaged: nothing that was said of it before counts

	known              bool // the rest is set
	vouched            bool // by a member that may
	entries, signature []byte
	checked            uint64 // runs that were hashed here, while nobody vouches
}

func (p *gathered) decode(id pack.ID) iter.Seq[pack.Entry] {
	return func(yield func(pack.Entry) bool) {
		for b := p.entries; len(b) > 0; b = b[pack.EntrySize:] {
			if e, err := pack.DecodeEntry(id, b[:pack.EntrySize]); err == nil && !yield(e) {
				return
			}
		}
	}
}

func (l *loader) list(ctx context.Context) error {
	for _, scope := range l.cfg.Scopes {
		for info, err := range l.cfg.Bucket.List(ctx, content.KeyPacks.Of(scope), "") {
			if err != nil {
				return err
			}
			id, err := pack.ParseKey(info.Key)
			if err != nil || info.Size < pack.SizeMin {
				l.cfg.Log.Warn("not a pack, passed over", "key", info.Key)
				continue
			}
			l.packs[id] = &gathered{size: info.Size, modified: info.Modified}
		}
	}
	return nil
}

// vouched reports whether a member that may gives its word for the directory of p,
// and what the store has is what it spoke of.
func (l *loader) vouched(p Pack, there *gathered) bool {
	modified := there.modified
	if l.cfg.Verifier == nil || len(p.Signature) == 0 || modified.IsZero() || there.suspect {
		return false
	}
	said := trust.Pack{ID: string(p.ID), Scope: p.ID.Scope(), Directory: content.Sum(p.Entries)}
	// Seen now: of a key that was revoked since nobody knows when it went bad, and to look costs one read.
	at, err := l.cfg.Verifier.OpenPack(p.Signature, said, l.cfg.Now(), l.cfg.Now())
	switch {
	case err != nil:
		l.cfg.Log.Warn("the signature of a pack does not hold; what is reused of it is read first", "pack", p.ID, "error", err)
	case modified.Sub(at) > uploadMax:
		l.cfg.Log.Warn("a pack was written again after it was signed; what is reused of it is read first", "pack", p.ID, "signed", at, "written", modified)
	}
	return err == nil && modified.Sub(at) <= uploadMax
}

// fits reports whether p can be the directory of the pack of that size.
func fits(p Pack, size int64) bool {
	if len(p.Entries) == 0 {
		return false
	}
	last, err := pack.DecodeEntry(p.ID, p.Entries[len(p.Entries)-pack.EntrySize:])
	return err == nil && pack.SizeOf(last, p.Entries, p.Signature) == size
}

// take keeps what some index says of packs, as far as it may be believed: what no member vouches for is
// believed of the pack's own end, or of the local cache while the pack is the same.
func (l *loader) take(packs []Pack, local bool) {
	var group errgroup.Group // a signature takes as long as hashing a chunk or two
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range packs {
		there := l.packs[p.ID]
		if there == nil || there.known || !fits(p, there.size) {
			continue
		}
		there.known = true // in the same list once more: passed over
		group.Go(func() error {
			there.vouched = l.vouched(p, there)
			same := local && p.Modified == there.modified.UnixNano()
			if there.known = there.vouched || same; !there.known {
				return nil
			}
			there.entries, there.signature = p.Entries, p.Signature
			if same && !there.suspect {
				there.checked = p.Checked
			}
			return nil
		})
	}
	_ = group.Wait() // none of them fails
}

func (l *loader) readCache() {
	l.sources = make(map[string]bool)
	packs, sources, err := readCacheFile(l.cfg)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.cfg.Log.Warn("cached pack index passed over", "error", err)
	}
	l.take(packs, true)
	for _, s := range sources {
		l.sources[s] = true
	}
}

func (l *loader) writeCache() {
	if l.cfg.Dir == "" {
		return
	}
	var packs []Pack
	for id, p := range l.packs {
		if p.known {
			packs = append(packs, Pack{ID: id, Entries: p.entries, Signature: p.signature, Modified: p.modified.UnixNano(), Checked: p.checked})
		}
	}
	if err := replaceCacheFile(l.cfg, packs, slices.Collect(maps.Keys(l.sources))); err != nil {
		l.cfg.Log.Warn("pack index not cached", "error", err)
	}
}

// listObjects returns the keys of the index objects, and notes which packs are suspect.
func (l *loader) listObjects(ctx context.Context) (keys []string, _ error) {
	for _, scope := range l.cfg.Scopes {
		for info, err := range l.cfg.Bucket.List(ctx, content.KeyIndexes.Of(scope), "") {
			if err != nil {
				return nil, err
			}
			if id, err := pack.CutKey(info.Key, content.KeyIndexes, SuspectSuffix); err == nil {
				if p := l.packs[id]; p != nil {
					p.suspect = true
				}
			} else if _, err := pack.CutKey(info.Key, content.KeyIndexes, indexSuffix); err == nil { // it is named like a pack
				keys = append(keys, info.Key)
			} else {
				l.cfg.Log.Warn("not an index object, passed over", "key", info.Key)
			}
		}
	}
	return keys, nil
}

// readObjects reads the cache, and the index objects that it does not contain.
func (l *loader) readObjects(ctx context.Context) error {
	keys, err := l.listObjects(ctx)
	if err != nil {
		return err
	}
	l.readCache()
	cached := l.sources
	l.sources = make(map[string]bool) // of those that still exist
	for _, key := range keys {
		if l.sources[key] = true; cached[key] {
			continue
		}
		sources, err := bucket.ReadChecked(ctx, l.cfg.Bucket, key, pack.SizeMax, func(b []byte, _ bucket.Info) ([]string, error) {
			packs, sources, err := decodeIndex(b)
			l.take(packs, false)
			return sources, err
		})
		switch {
		case errors.Is(err, content.ErrCorrupt), errors.Is(err, content.ErrNotFound):
			l.cfg.Log.Warn("index object passed over", "key", key, "error", err)
		case err != nil:
			return err
		}
		l.changed = true
		for _, s := range sources { // it contains these too
			cached[s] = true
		}
	}
	return nil
}

func (l *loader) readDirectories(ctx context.Context) error {
	var ids []pack.ID
	for id, p := range l.packs {
		if !p.known {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b pack.ID) int { return cmp.Compare(b.Age(), a.Age()) })
	if len(ids) > directoriesMax {
		l.cfg.Log.Warn("older packs without an index object passed over", "packs", len(ids)-directoriesMax)
		ids = ids[:directoriesMax]
	}
	reader := pack.NewReader(l.cfg.Bucket)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(directoriesAtOnce)
	for _, id := range ids {
		group.Go(func() error {
			d, err := reader.ReadDirectory(ctx, id)
			if errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrForbidden) || errors.Is(err, content.ErrNotFound) {
				l.cfg.Log.Warn("pack not indexed", "pack", id, "error", err)
				return nil
			}
			if err != nil {
				return err
			}
			l.read(d)
			return nil
		})
	}
	err := group.Wait()
	for _, id := range ids {
		l.changed = l.changed || l.packs[id].known
	}
	return err
}

// read takes what the end of a pack itself says. Packs may be read at once, each by one goroutine.
func (l *loader) read(d *pack.Directory) {
	p, there := Pack{ID: d.Pack, Entries: d.Encode(), Signature: d.Signature}, l.packs[d.Pack]
	if !fits(p, there.size) { // a stub, or written again since it was listed
		return
	}
	there.known, there.vouched = true, l.vouched(p, there)
	there.entries, there.signature = p.Entries, p.Signature
}

// index sorts what was gathered. Of an object that lies in several packs, the one is
// known that a member vouches for, then those that come First, then the widest scope, then the oldest: so that
// two importers refer to the same, and nobody is led to a pack by its name.
func (l *loader) index() *Index {
	x := &Index{
		cfg: l.cfg, reader: pack.NewReader(l.cfg.Bucket),
		foreign: make(map[uint32]*foreign), stamps: make(map[pack.ID]stamp, len(l.packs)),
	}
	total := 0
	for id, p := range l.packs {
		if p.known {
			x.packs = append(x.packs, id)
			x.stamps[id] = stamp{p.size, p.modified.UnixNano()}
			total += len(p.entries) / pack.EntrySize
		}
	}
	slices.SortFunc(x.packs, l.compare)
	x.entries = make([]entry, 0, total)
	for n, id := range x.packs {
		p := l.packs[id]
		for e := range p.decode(id) {
			x.entries = append(x.entries, entry{e.CID, uint32(n)<<8 | uint32(e.Codec), e.Offset, e.Length, e.Raw})
		}
		if !p.vouched {
			x.foreign[uint32(n)] = newForeign(id, p)
		}
		p.entries = nil
	}
	slices.SortFunc(x.entries, func(a, b entry) int {
		return cmp.Or(compareCID(a.cid, b.cid), cmp.Compare(a.packCodec, b.packCodec), cmp.Compare(a.offset, b.offset))
	})
	x.entries = slices.CompactFunc(x.entries, func(a, b entry) bool { return a.cid == b.cid })
	return x
}

// compare is negative when a is the pack to refer to rather than b.
func (l *loader) compare(a, b pack.ID) int {
	if v := l.packs[a].vouched; v != l.packs[b].vouched {
		if v {
			return -1
		}
		return 1
	}
	if first := l.cfg.First[a]; first != l.cfg.First[b] {
		if first {
			return -1
		}
		return 1
	}
	if sa, sb := a.Scope(), b.Scope(); sa != sb && sa.Covers(sb) {
		return -1
	} else if sa != sb && sb.Covers(sa) {
		return 1
	}
	return cmp.Or(cmp.Compare(a.Age(), b.Age()), cmp.Compare(a, b))
}
