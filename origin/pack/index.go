package pack

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
)

// IndexConfig says which packs to index.
type IndexConfig struct {
	Bucket bucket.Bucket
	// Scopes whose packs are indexed.
	Scopes []content.Scope
	// Dir caches what was read, in one file; "" caches nothing. A damaged file is
	// read anew.
	Dir string
	// Log receives what is worth telling an operator; nil discards it.
	Log *slog.Logger
}

const (
	// directoriesMax bounds the packs whose own directories are read because no
	// index object covers them, the newest first: a minute or so of requests. The
	// rest is not known to the index, which costs space, nothing else.
	directoriesMax = 4096
	// directoriesAtOnce bounds the requests in flight.
	directoriesAtOnce = 8
)

// Index knows every object in the packs of some scopes, 48 bytes each. It is a
// Known for importers. Safe for concurrent use.
type Index struct {
	packs   []ID
	entries []indexEntry // by CID, each once
}

// indexEntry is 48 bytes without pointers.
type indexEntry struct {
	cid                 content.CID
	packCodec           uint32 // number of the pack << 8 | codec
	offset, length, raw uint32
}

// Len returns the number of objects known.
func (x *Index) Len() int { return len(x.entries) }

// Locate returns where an object is stored.
func (x *Index) Locate(id content.CID) (Location, bool) {
	i, ok := slices.BinarySearchFunc(x.entries, id, func(e indexEntry, id content.CID) int { return compareCID(e.cid, id) })
	if !ok {
		return Location{}, false
	}
	e := &x.entries[i]
	return Location{
		Pack: x.packs[e.packCodec>>8], Offset: e.offset, Length: e.length, Raw: e.raw, Codec: Codec(e.packCodec),
	}, true
}

func compareCID(a, b content.CID) int {
	if c := cmp.Compare(binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(b[:])); c != 0 {
		return c
	}
	return bytes.Compare(a[:], b[:])
}

// LoadIndex reads what the cache lacks: index objects first, then the
// directories of packs that none covers. Packs that are not in the bucket any
// more are left out, and so are those whose directory is damaged.
func LoadIndex(ctx context.Context, cfg IndexConfig) (*Index, error) {
	if cfg.Bucket == nil || len(cfg.Scopes) == 0 {
		return nil, fmt.Errorf("load pack index: %w: no bucket or no scopes", content.ErrInvalid)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &indexLoader{cfg: cfg, packs: make(map[ID]*indexedPack)}
	if err := l.list(ctx); err != nil {
		return nil, fmt.Errorf("load pack index: %w", err)
	}
	l.readCache()
	if err := l.readObjects(ctx); err != nil {
		return nil, fmt.Errorf("load pack index: %w", err)
	}
	if err := l.readDirectories(ctx); err != nil {
		return nil, fmt.Errorf("load pack index: %w", err)
	}
	if l.changed {
		l.writeCache()
	}
	return l.index(), nil
}

// indexLoader gathers the directories of all packs that are in the bucket.
type indexLoader struct {
	cfg     IndexConfig
	packs   map[ID]*indexedPack
	sources map[string]bool // index objects that were read
	changed bool            // there is more than the cache has
}

type indexedPack struct {
	size    int64
	known   bool
	entries []byte
}

// list learns which packs there are.
func (l *indexLoader) list(ctx context.Context) error {
	for _, scope := range l.cfg.Scopes {
		for info, err := range l.cfg.Bucket.List(ctx, keyPrefix+scope.String()+"/", "") {
			if err != nil {
				return err
			}
			id, err := parseKey(info.Key)
			if err != nil {
				l.cfg.Log.Warn("not a pack, passed over", "key", info.Key)
				continue
			}
			l.packs[id] = &indexedPack{size: info.Size}
		}
	}
	return nil
}

// take keeps the entries of a pack unless the bucket's has another size: a pack
// that was rewritten since is read again.
func (l *indexLoader) take(id ID, entries []byte) {
	p := l.packs[id]
	if p == nil || p.known || len(entries) == 0 {
		return
	}
	last, err := decodeEntry(id, entries[len(entries)-entrySizeDirectory:])
	if err != nil || int64(last.End())+int64(len(entries))+footerSize != p.size {
		return
	}
	p.known, p.entries = true, bytes.Clone(entries)
}

// readAll takes the packs of an index, all or, when it is damaged, none.
func (l *indexLoader) readAll(r io.Reader) ([]string, error) {
	var packs []packEntries
	sources, err := readIndexFrom(r, func(p packEntries) error {
		if known := l.packs[p.id]; known != nil && !known.known {
			packs = append(packs, packEntries{p.id, bytes.Clone(p.entries)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, p := range packs {
		l.take(p.id, p.entries)
	}
	return sources, nil
}

func (l *indexLoader) cachePath() string {
	var names []string
	for _, s := range l.cfg.Scopes {
		names = append(names, s.String())
	}
	slices.Sort(names)
	sum := content.Sum([]byte(strings.Join(names, "\n")))
	return filepath.Join(l.cfg.Dir, "packs-"+hex.EncodeToString(sum[:8])+indexSuffix)
}

func (l *indexLoader) readCache() {
	l.sources = make(map[string]bool)
	if l.cfg.Dir == "" {
		return
	}
	f, err := os.Open(l.cachePath())
	if err == nil {
		var sources []string
		sources, err = l.readAll(f)
		for _, s := range sources {
			l.sources[s] = true
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.cfg.Log.Warn("cached pack index passed over", "error", err)
	}
}

// writeCache replaces the cache. It is not synced: a torn file is seen by its
// checksum and read anew.
func (l *indexLoader) writeCache() {
	if l.cfg.Dir == "" {
		return
	}
	if err := l.replaceCache(); err != nil {
		l.cfg.Log.Warn("pack index not cached", "error", err)
	}
}

func (l *indexLoader) replaceCache() error {
	if err := os.MkdirAll(l.cfg.Dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(l.cfg.Dir, ".packs-*")
	if err != nil {
		return err
	}
	var packs []packEntries
	for id, p := range l.packs {
		if p.known {
			packs = append(packs, packEntries{id, p.entries})
		}
	}
	var sources []string
	for s := range l.sources {
		sources = append(sources, s)
	}
	err = errors.Join(writeIndexTo(f, packs, sources), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), l.cachePath())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// readObjects reads the index objects that the cache does not contain.
func (l *indexLoader) readObjects(ctx context.Context) error {
	cached := l.sources
	l.sources = make(map[string]bool) // of those that still exist
	for _, scope := range l.cfg.Scopes {
		for info, err := range l.cfg.Bucket.List(ctx, indexPrefix+scope.String()+"/", "") {
			if err != nil {
				return err
			}
			if _, err := parseIndexKey(info.Key); err != nil {
				l.cfg.Log.Warn("not an index object, passed over", "key", info.Key)
				continue
			}
			if l.sources[info.Key] = true; cached[info.Key] {
				continue
			}
			b, _, err := bucket.ReadAll(ctx, l.cfg.Bucket, info.Key, SizeMax)
			var sources []string
			if err == nil {
				sources, err = l.readAll(bytes.NewReader(b))
			}
			switch {
			case errors.Is(err, content.ErrCorrupt), errors.Is(err, content.ErrNotFound):
				l.cfg.Log.Warn("index object passed over", "key", info.Key, "error", err)
			case err != nil:
				return err
			}
			l.changed = true
			for _, s := range sources { // it contains these too
				cached[s] = true
			}
		}
	}
	return nil
}

// readDirectories reads the packs that nothing covers.
func (l *indexLoader) readDirectories(ctx context.Context) error {
	var ids []ID
	for id, p := range l.packs {
		if !p.known {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ID) int { return cmp.Compare(b.age(), a.age()) })
	if len(ids) > directoriesMax {
		l.cfg.Log.Warn("older packs without an index object passed over", "packs", len(ids)-directoriesMax)
		ids = ids[:directoriesMax]
	}
	reader := NewReader(l.cfg.Bucket)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(directoriesAtOnce)
	var mu sync.Mutex // guards l while the group runs
	for _, id := range ids {
		group.Go(func() error {
			d, err := reader.ReadDirectory(ctx, id)
			if errors.Is(err, content.ErrCorrupt) || errors.Is(err, content.ErrNotFound) {
				l.cfg.Log.Warn("pack not indexed", "pack", id, "error", err)
				return nil
			}
			if err != nil {
				return err
			}
			var entries []byte
			for _, e := range d.Entries {
				entries = appendEntry(entries, e)
			}
			mu.Lock()
			defer mu.Unlock()
			l.changed = true
			l.take(id, entries)
			return nil
		})
	}
	return group.Wait()
}

// index sorts what was gathered. Of an object that lies in several packs the
// oldest is known, so that two importers refer to the same.
func (l *indexLoader) index() *Index {
	x := &Index{}
	total := 0
	for id, p := range l.packs {
		if p.known {
			x.packs = append(x.packs, id)
			total += len(p.entries) / entrySizeDirectory
		}
	}
	slices.SortFunc(x.packs, func(a, b ID) int { return cmp.Or(cmp.Compare(a.age(), b.age()), cmp.Compare(a, b)) })
	x.entries = make([]indexEntry, 0, total)
	for n, id := range x.packs {
		for b := l.packs[id].entries; len(b) > 0; b = b[entrySizeDirectory:] {
			e, err := decodeEntry(id, b[:entrySizeDirectory])
			if err != nil { // take looked at the last one only
				l.cfg.Log.Warn("indexed frame passed over", "pack", id, "error", err)
				continue
			}
			x.entries = append(x.entries, indexEntry{e.CID, uint32(n)<<8 | uint32(e.Codec), e.Offset, e.Length, e.Raw})
		}
		l.packs[id].entries = nil
	}
	slices.SortFunc(x.entries, func(a, b indexEntry) int {
		return cmp.Or(compareCID(a.cid, b.cid), cmp.Compare(a.packCodec, b.packCodec), cmp.Compare(a.offset, b.offset))
	})
	x.entries = slices.CompactFunc(x.entries, func(a, b indexEntry) bool { return a.cid == b.cid })
	return x
}
